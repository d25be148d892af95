//! CUDA graphs: what a stream was handed is recorded, and launched again as one.

use super::recording::Recorder;
use crate::error::EngineError;
use candle_core::CudaDevice;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use candle_core::cuda::cudarc::driver::{CudaGraph, sys::CUgraphInstantiate_flags};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicBool;

type Result<T> = std::result::Result<T, EngineError>;

/// Records on a device's stream.
pub struct Graphs {
    device: CudaDevice,
    enabled: AtomicBool,
}

impl Graphs {
    /// On that device, if its memory comes in the order of the stream and no tensor waits for another stream's; not with `QUORUM_GRAPHS=0` in
    /// the environment (to compare).
    pub fn new(device: &CudaDevice) -> Self {
        let wanted = std::env::var_os("QUORUM_GRAPHS").is_none_or(|v| v != "0");
        let able = device.cuda_stream().context().has_async_alloc() && !device.is_event_tracking();
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
        let worked = catch_unwind(AssertUnwindSafe(work));
        // The recording must end in any case, or the stream runs nothing ever again; an error kept from a drop would be in the way.
        let freed = stream.context().check_err().w();
        let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).w();
        worked.unwrap_or_else(|panic| resume_unwind(panic))?;
        freed?;
        graph?.ok_or_else(|| EngineError::Device("the stream recorded nothing".into()))
    }

    fn launch(&self, graph: &CudaGraph) -> Result<()> {
        Ok(graph.launch().w()?)
    }
}
