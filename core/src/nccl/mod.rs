//! Communicators of NCCL, one GPU a rank. They are non-blocking and every wait polls with a deadline, at which the communicator is aborted:
//! a rank that is lost or never comes is an error, never a hang. The libraries are loaded at run time.
//!
//! NCCL does not say who is late. With two ranks it is the other one; with more, the coordinator names them.

mod broadcast;
mod device;
mod library;

pub use broadcast::{Way, broadcast};
pub use device::Device;
pub use library::{Code, Driver, Functions, IN_PROGRESS};

use crate::collective::{CollectiveError, Patience};
use cudarc::driver::sys::CUstream;
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_micros(200);
/// How long `ncclCommAbort` or `ncclCommDestroy`, which run on a thread of their own, are waited for.
const END: Duration = Duration::from_secs(5);
/// "Not set", in NCCL's configuration.
const UNSET: c_int = c_int::MIN;
/// The release whose configuration this file fills in, and the first with non-blocking communicators.
const VERSION: u32 = 2_28_09;
const OLDEST: c_int = 2_14_00;

/// Bytes of a group's id.
pub const ID: usize = 128;
/// NCCL's numbers of types and operations.
pub const FLOAT: c_int = ncclDataType_t::ncclFloat32 as c_int;
pub const BF16: c_int = ncclDataType_t::ncclBfloat16 as c_int;
pub const BYTE: c_int = ncclDataType_t::ncclUint8 as c_int;
pub const SUM: c_int = ncclRedOp_t::ncclSum as c_int;

/// The address `offset` bytes behind `buffer`.
pub fn at(buffer: u64, offset: usize) -> *mut c_void {
    (buffer as usize + offset) as *mut c_void
}

/// A new group's id: rank 0 makes it and the coordinator hands it to the others.
///
/// # Errors
/// NCCL cannot be loaded or finds no network interface.
pub fn new_id() -> Result<Vec<u8>, CollectiveError> {
    let (start, what) = (Instant::now(), "group id");
    let functions = Functions::get().map_err(|reason| CollectiveError::failed(what, start, reason))?;
    let mut id = ncclUniqueId { internal: [0; ID] };
    // SAFETY: writes 128 bytes.
    let code = unsafe { (functions.unique_id)(&mut id) };
    functions.check(code).map_err(|reason| CollectiveError::failed(what, start, reason))?;
    Ok(id.internal.iter().map(|&byte| byte as u8).collect())
}

/// Whether device number `device` and NCCL can be used by this process.
///
/// # Errors
/// Says what is missing.
pub fn usable(device: usize) -> Result<(), String> {
    Device::open(device)?;
    supported(Functions::get()?)
}

fn supported(functions: &Functions) -> Result<(), String> {
    let mut version = 0;
    // SAFETY: writes one number.
    functions.check(unsafe { (functions.version)(&mut version) })?;
    if version < OLDEST {
        return Err(format!("NCCL {version} has no non-blocking communicators; install 2.14 or newer"));
    }
    Ok(())
}

/// A rank of a group. Used on the thread that formed it.
pub struct Communicator {
    functions: &'static Functions,
    /// Null once ended.
    handle: ncclComm_t,
    device: Device,
    rank: usize,
    world: usize,
    patience: Patience,
}

impl Communicator {
    /// Forms the group of `id` as `rank` of `world` with CUDA device number `device`; returns when all ranks have come.
    ///
    /// # Errors
    /// A rank has not come by the deadline, or library, device or id do not serve.
    pub fn form(
        id: &[u8],
        rank: usize,
        world: usize,
        device: usize,
        patience: Patience,
    ) -> Result<Self, CollectiveError> {
        const FORM: &str = "forming the group";
        let start = Instant::now();
        let fail = |reason: String| CollectiveError::failed(FORM, start, reason);
        if id.len() != ID || rank >= world {
            return Err(fail(format!("an id of {} bytes for rank {rank} of {world} does not fit", id.len())));
        }
        let device = Device::open(device).map_err(fail)?;
        let functions = Functions::get().map_err(fail)?;
        supported(functions).map_err(fail)?;
        let mut unique = ncclUniqueId { internal: [0; ID] };
        for (to, &from) in unique.internal.iter_mut().zip(id) {
            *to = from as _;
        }
        let mut group = Self { functions, handle: std::ptr::null_mut(), device, rank, world, patience };
        let mut config = configuration();
        // SAFETY: writes the communicator; the device's context is current on this thread; NCCL copies the configuration.
        let code = unsafe { (functions.init)(&mut group.handle, world as c_int, unique, rank as c_int, &mut config) };
        let formed = group.settle(FORM, start, code);
        formed.inspect_err(|_| group.abort())?;
        Ok(group)
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn world(&self) -> usize {
        self.world
    }

    /// The device's memory, and copies from and to it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Device memory of `bytes` for an operation of a live group.
    ///
    /// # Errors
    /// The group has ended, or the device has not that much.
    pub fn prepare(&mut self, operation: &str, start: Instant, bytes: usize) -> Result<u64, CollectiveError> {
        if self.handle.is_null() {
            return Err(CollectiveError::failed(operation, start, "the group has ended".to_owned()));
        }
        self.device.reserve(bytes.max(1)).map_err(|e| CollectiveError::failed(operation, start, e))
    }

    /// Starts one operation and waits until its results are there; after any failure the group has ended.
    ///
    /// # Errors
    /// A rank is late or lost by `start` and the deadline.
    pub fn call(
        &mut self,
        operation: &str,
        start: Instant,
        begin: impl FnOnce(&Functions, ncclComm_t, CUstream) -> Code,
    ) -> Result<(), CollectiveError> {
        self.begin(operation, start, begin)?;
        self.finish(operation, start)
    }

    /// The first half of `call`: the operation is queued.
    ///
    /// # Errors
    /// As for `call`.
    pub fn begin(
        &mut self,
        operation: &str,
        start: Instant,
        begin: impl FnOnce(&Functions, ncclComm_t, CUstream) -> Code,
    ) -> Result<(), CollectiveError> {
        let code = begin(self.functions, self.handle, self.device.stream());
        self.settle(operation, start, code).inspect_err(|_| self.abort())
    }

    /// The second half of `call`: all that was queued is done.
    ///
    /// # Errors
    /// As for `call`.
    pub fn finish(&mut self, operation: &str, start: Instant) -> Result<(), CollectiveError> {
        self.drain(operation, start).inspect_err(|_| self.abort())
    }

    /// Waits until what the last call began in the background has been queued.
    fn settle(&self, operation: &str, start: Instant, code: Code) -> Result<(), CollectiveError> {
        self.functions.check(code).map_err(|reason| CollectiveError::failed(operation, start, reason))?;
        while self.state(operation, start)? == IN_PROGRESS {
            self.wait(operation, start)?;
        }
        Ok(())
    }

    /// Waits until the stream is idle.
    fn drain(&self, operation: &str, start: Instant) -> Result<(), CollectiveError> {
        while !self.device.idle().map_err(|reason| CollectiveError::failed(operation, start, reason))? {
            // An error of another rank shows here; the stream alone would stay busy.
            self.state(operation, start)?;
            self.wait(operation, start)?;
        }
        Ok(())
    }

    fn state(&self, operation: &str, start: Instant) -> Result<Code, CollectiveError> {
        let mut state = 0;
        // SAFETY: the communicator is alive; writes one number.
        let code = unsafe { (self.functions.state)(self.handle, &mut state) };
        let both = self.functions.check(code).and_then(|()| self.functions.check(state));
        both.map(|()| state).map_err(|reason| CollectiveError::failed(operation, start, reason))
    }

    fn wait(&self, operation: &str, start: Instant) -> Result<(), CollectiveError> {
        let late = || if self.world == 2 { vec![1 - self.rank] } else { Vec::new() };
        self.patience.check(operation, start, late)?;
        // The first microseconds count in small sums; after a millisecond, so does the processor.
        if start.elapsed() > Duration::from_millis(1) {
            std::thread::sleep(POLL)
        } else {
            std::thread::yield_now()
        }
        Ok(())
    }

    /// Leaves a group whose work is done on all ranks, once what this rank still sends has gone out: an abort could take it from the others. `start` and
    /// the group's deadline bound this, too.
    ///
    /// # Errors
    /// As for `call`; the group has ended all the same.
    pub fn close(mut self, start: Instant) -> Result<(), CollectiveError> {
        const CLOSE: &str = "leaving the group";
        if self.handle.is_null() {
            return Err(CollectiveError::failed(CLOSE, start, "the group has ended".to_owned()));
        }
        // SAFETY: the communicator is alive, and nothing is called with it afterwards but its state and its end.
        let code = unsafe { (self.functions.finalize)(self.handle) };
        self.settle(CLOSE, start, code).inspect_err(|_| self.abort())?;
        self.end(self.functions.destroy);
        Ok(())
    }

    /// Ends the communicator with its kernels on the device, so that no other rank waits for this one. Later calls are errors.
    pub fn abort(&mut self) {
        self.end(self.functions.abort);
    }

    /// Runs aside, because it may wait for threads of NCCL. What does not end in time may still use the buffer.
    fn end(&mut self, with: unsafe extern "C" fn(ncclComm_t) -> Code) {
        let handle = std::mem::replace(&mut self.handle, std::ptr::null_mut()) as usize;
        if handle == 0 {
            return;
        }
        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: the last use of the communicator, which was alive.
            let code = unsafe { with(handle as ncclComm_t) };
            let _ = done.send(code);
        });
        if finished.recv_timeout(END).is_err() {
            let bytes = self.device.abandon();
            let seconds = END.as_secs();
            tracing::warn!(
                seconds,
                bytes,
                "the NCCL communicator does not end; leaving it and its device memory behind"
            );
        }
    }
}

/// All defaults but one: calls return at once.
fn configuration() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: 0xcafe_beef,
        version: VERSION,
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: std::ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: std::ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
    }
}

impl Drop for Communicator {
    /// Waits for nobody.
    fn drop(&mut self) {
        self.abort();
    }
}
