//! CUDA graphs: what a stream was handed is recorded, and launched again as one.

use super::recording::Recorder;
use crate::error::EngineError;
use candle_core::CudaDevice;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use candle_core::cuda::cudarc::driver::{CudaGraph, sys::CUgraphInstantiate_flags};
use std::sync::atomic::AtomicBool;

type Result<T> = std::result::Result<T, EngineError>;

/// Records on a device's stream.
pub struct Graphs {
    device: CudaDevice,
    enabled: AtomicBool,
}

impl Graphs {
    /// On that device, unless its memory does not come in the order of the stream, or `QUORUM_GRAPHS=0` is in the environment (to compare).
    pub fn new(device: &CudaDevice) -> Self {
        let wanted = std::env::var_os("QUORUM_GRAPHS").is_none_or(|v| v != "0");
        let able = device.cuda_stream().context().has_async_alloc();
        Self { device: device.clone(), enabled: AtomicBool::new(wanted && able) }
    }
}

impl Recorder for Graphs {
    type Recorded = CudaGraph;

    fn enabled(&self) -> &AtomicBool {
        &self.enabled
    }

    /// Shapes and strides that kernels read from the device are sent and kept there: nothing can be sent while recording.
    fn prepare(&self, work: &dyn Fn() -> Result<()>) -> Result<()> {
        let _kept = self.device.enable_cuda_graph_htod_cache();
        work()
    }

    fn record(&self, work: &dyn Fn() -> Result<()>) -> Result<CudaGraph> {
        let _kept = self.device.enable_cuda_graph_htod_cache();
        let stream = self.device.cuda_stream();
        stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let worked = work();
        // In any case: until then the stream runs nothing.
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).w();
        worked?;
        graph?.ok_or_else(|| EngineError::Device("the stream recorded nothing".into()))
    }

    fn launch(&self, graph: &CudaGraph) -> Result<()> {
        Ok(graph.launch().w()?)
    }
}
