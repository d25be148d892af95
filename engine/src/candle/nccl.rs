//! Sums between the GPUs of one engine over NCCL: a communicator a shard, formed at the first call and again after a call in which a shard failed.
//! The shards meet on the host before each sum is queued, so that none waits on its GPU for one that failed elsewhere.

use super::team::Seat;
use crate::device::Devices;
use crate::error::EngineError;
use candle_core::backend::BackendStorage;
use candle_core::cuda::CudaStorageSlice;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DeviceRepr};
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Tensor, bail};
use quorum_core::collective::Patience;
use quorum_core::nccl::{BF16, Communicator, FLOAT, SUM, new_id};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, EngineError>;

/// How long forming the group, or queueing one sum, may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The communicators of an engine's shards, in their order.
pub struct Ring {
    seats: Vec<(usize, Mutex<Option<Held>>)>,
    /// A shard failed: whoever waits inside NCCL gives up.
    cut: Arc<AtomicBool>,
}

/// A communicator, used by one thread at a time.
struct Held(Communicator);

// SAFETY: NCCL and the driver take calls on a communicator from any thread, one at a time; the mutex around it sees to that.
unsafe impl Send for Held {}

impl Ring {
    /// Between these CUDA devices; nothing is formed yet.
    pub fn new(devices: &Devices) -> Self {
        let seats = devices.all().iter().filter_map(|d| Some((d.ordinal()?, Mutex::default()))).collect();
        Self { seats, cut: Arc::default() }
    }

    fn held(&self, rank: usize) -> MutexGuard<'_, Option<Held>> {
        self.seats[rank].1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by every shard: forms the group unless it stands.
    pub fn form(&self, seat: Seat) -> Result<()> {
        let id = seat.share(|| {
            if (0..self.seats.len()).all(|rank| self.held(rank).is_some()) {
                return Ok(None);
            }
            self.cut.store(false, Ordering::Release);
            new_id().map(Some).map_err(|e| EngineError::Device(e.to_string()))
        })?;
        let Some(id) = id.as_ref() else { return Ok(()) };
        let cut = self.cut.clone();
        let interrupt = Arc::new(move || cut.load(Ordering::Acquire).then(|| "another shard failed".to_owned()));
        let patience = Patience { deadline: PATIENCE, interrupt };
        let (rank, world, device) = (seat.rank(), seat.world(), self.seats[seat.rank()].0);
        let formed = Communicator::form(id, rank, world, device, patience);
        *self.held(rank) = Some(Held(formed.map_err(|e| EngineError::Device(e.to_string()))?));
        Ok(())
    }

    /// The sum of the shards' tensors, in the memory of this shard's, which must be nobody else's.
    pub fn sum(&self, seat: Seat, x: Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        seat.meet(Arc::new(()))?;
        x.inplace_op1(&AllReduce { ring: self, rank: seat.rank() })?;
        Ok(x)
    }

    /// Ends all communicators, with what they run on the devices.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        for rank in 0..self.seats.len() {
            drop(self.held(rank).take());
        }
    }

    fn queue<T: DeviceRepr>(
        &self,
        rank: usize,
        data: &mut CudaSlice<T>,
        (start, end): (usize, usize),
        kind: c_int,
        stream: &CudaStream,
    ) -> candle_core::Result<()> {
        let mut held = self.held(rank);
        let Some(Held(group)) = held.as_mut() else { bail!("another shard failed") };
        let Some(mut view) = data.try_slice_mut(start..end) else { bail!("a sum of elements that are not there") };
        let (address, _record) = view.device_ptr_mut(stream);
        let at = address as *mut c_void;
        let queued = group.begin("sum of activations", Instant::now(), |nccl, communicator, _| {
            // SAFETY: `end - start` elements of this type lie there, and what reads them next is queued behind on the same stream.
            unsafe { (nccl.all_reduce)(at, at, end - start, kind, SUM, communicator, stream.cu_stream()) }
        });
        queued.map_err(candle_core::Error::wrap)
    }
}

struct AllReduce<'a> {
    ring: &'a Ring,
    rank: usize,
}

impl InplaceOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "sum of the shards"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        bail!("NCCL adds tensors on GPUs")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some(part) = layout.contiguous_offsets() else { bail!("a sum of elements that do not lie together") };
        let stream = storage.device().cuda_stream();
        match &mut storage.slice {
            CudaStorageSlice::F32(data) => self.ring.queue(self.rank, data, part, FLOAT, &stream),
            CudaStorageSlice::BF16(data) => self.ring.queue(self.rank, data, part, BF16, &stream),
            _ => bail!("sums are in f32 or bf16"),
        }
    }
}
