//! Learner ranks that share sums over NCCL, one GPU each. Communicators are non-blocking and every wait polls with a deadline, at which
//! the communicator is aborted: a rank that is lost or never comes is an error, never a hang.
//!
//! NCCL does not say who is late. With two ranks it is the other one; with more, the coordinator's reply to `FormGroup` names them.

mod device;
mod library;
mod operations;

use super::{CollectiveError, Patience};
use cudarc::driver::sys::CUstream;
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use device::Device;
use library::{Code, Functions, IN_PROGRESS};
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_micros(200);
/// How long `ncclCommAbort`, which runs on a thread of its own, is waited for.
const ABORT: Duration = Duration::from_secs(5);
/// "Not set", in NCCL's configuration.
const UNSET: c_int = c_int::MIN;
/// The release whose configuration this file fills in, and the first with non-blocking communicators.
const VERSION: u32 = 2_28_09;
const OLDEST: c_int = 2_14_00;

/// A rank of a NCCL group.
pub struct Nccl {
    functions: &'static Functions,
    /// Null once aborted.
    communicator: ncclComm_t,
    device: Device,
    rank: usize,
    world: usize,
    patience: Patience,
}

impl Nccl {
    /// A new group's id, 128 bytes: rank 0 makes it and the coordinator hands it to the others.
    ///
    /// # Errors
    /// NCCL cannot be loaded or finds no network interface.
    pub fn new_id() -> Result<Vec<u8>, CollectiveError> {
        let start = Instant::now();
        let functions = Functions::get().map_err(|reason| failed("group id", start, reason))?;
        let mut id = ncclUniqueId { internal: [0; 128] };
        // SAFETY: writes 128 bytes.
        let code = unsafe { (functions.unique_id)(&mut id) };
        functions.check(code).map_err(|reason| failed("group id", start, reason))?;
        Ok(id.internal.iter().map(|&byte| byte as u8).collect())
    }

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
        let fail = |reason: String| failed(FORM, start, reason);
        if id.len() != 128 || rank >= world {
            return Err(fail(format!("an id of {} bytes for rank {rank} of {world} does not fit", id.len())));
        }
        let device = Device::open(device).map_err(fail)?;
        let functions = Functions::get().map_err(fail)?;
        let mut version = 0;
        // SAFETY: writes one number.
        functions.check(unsafe { (functions.version)(&mut version) }).map_err(fail)?;
        if version < OLDEST {
            return Err(fail(format!("NCCL {version} has no non-blocking communicators; install 2.14 or newer")));
        }
        let mut unique = ncclUniqueId { internal: [0; 128] };
        for (to, &from) in unique.internal.iter_mut().zip(id) {
            *to = from as _;
        }
        let mut group = Self { functions, communicator: std::ptr::null_mut(), device, rank, world, patience };
        let mut config = configuration();
        // SAFETY: writes the communicator; the device's context is current on this thread; NCCL copies the configuration.
        let code =
            unsafe { (functions.init)(&mut group.communicator, world as c_int, unique, rank as c_int, &mut config) };
        let formed = group.settle(FORM, start, code);
        formed.inspect_err(|_| group.end())?;
        Ok(group)
    }

    /// Rank `root`'s `slab` to all ranks of the group.
    ///
    /// # Errors
    /// As for the other calls of a group.
    pub fn broadcast(&mut self, slab: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        const NAME: &str = "broadcast";
        if root >= self.world {
            let reason = format!("root {root} of {} ranks", self.world);
            return Err(CollectiveError::Arguments { operation: NAME, reason });
        }
        let start = Instant::now();
        let buffer = self.prepare(NAME, start, size_of_val(slab))?;
        if root == self.rank {
            self.device.upload(0, slab).map_err(|e| failed(NAME, start, e))?;
        }
        self.call(NAME, start, |nccl, communicator, stream| {
            // SAFETY: the buffer holds the slab and stays until the stream is idle.
            unsafe {
                (nccl.broadcast)(at(buffer, 0), at(buffer, 0), slab.len(), FLOAT, root as c_int, communicator, stream)
            }
        })?;
        self.device.download(0, slab).map_err(|e| failed(NAME, start, e))
    }

    /// Device memory of `bytes` for an operation of a live group.
    fn prepare(&mut self, operation: &str, start: Instant, bytes: usize) -> Result<u64, CollectiveError> {
        if self.communicator.is_null() {
            return Err(failed(operation, start, "the group has ended".to_owned()));
        }
        self.device.reserve(bytes.max(1)).map_err(|e| failed(operation, start, e))
    }

    /// Starts one operation and waits until its results are there; after any failure the group has ended.
    fn call(
        &mut self,
        operation: &str,
        start: Instant,
        begin: impl FnOnce(&Functions, ncclComm_t, CUstream) -> Code,
    ) -> Result<(), CollectiveError> {
        let code = begin(self.functions, self.communicator, self.device.stream());
        let done = self.settle(operation, start, code).and_then(|()| self.finish(operation, start));
        done.inspect_err(|_| self.end())
    }

    /// Waits until what the last call began in the background has been queued.
    fn settle(&self, operation: &str, start: Instant, code: Code) -> Result<(), CollectiveError> {
        self.functions.check(code).map_err(|reason| failed(operation, start, reason))?;
        while self.state(operation, start)? == IN_PROGRESS {
            self.wait(operation, start)?;
        }
        Ok(())
    }

    /// Waits until the stream is idle.
    fn finish(&self, operation: &str, start: Instant) -> Result<(), CollectiveError> {
        while !self.device.idle().map_err(|reason| failed(operation, start, reason))? {
            // An error of another rank shows here; the stream alone would stay busy.
            self.state(operation, start)?;
            self.wait(operation, start)?;
        }
        Ok(())
    }

    fn state(&self, operation: &str, start: Instant) -> Result<Code, CollectiveError> {
        let mut state = 0;
        // SAFETY: the communicator is alive; writes one number.
        let code = unsafe { (self.functions.state)(self.communicator, &mut state) };
        let both = self.functions.check(code).and_then(|()| self.functions.check(state));
        both.map(|()| state).map_err(|reason| failed(operation, start, reason))
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

    /// Aborts the communicator, which also ends its kernels on the device. Runs aside, because it may wait for threads of NCCL.
    fn end(&mut self) {
        let communicator = std::mem::replace(&mut self.communicator, std::ptr::null_mut()) as usize;
        if communicator == 0 {
            return;
        }
        let abort = self.functions.abort;
        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: the last use of the communicator, which was alive.
            let code = unsafe { abort(communicator as ncclComm_t) };
            let _ = done.send(code);
        });
        if finished.recv_timeout(ABORT).is_err() {
            tracing::warn!(seconds = ABORT.as_secs(), "the NCCL communicator does not end; leaving it behind");
        }
    }

    /// `all_gather` of stretches of equal length that lie one behind the other in the buffer, the own one already in place.
    fn gather(&mut self, operation: &str, start: Instant, buffer: u64, bytes: usize) -> Result<(), CollectiveError> {
        let own = at(buffer, self.rank * bytes);
        self.call(operation, start, |nccl, communicator, stream| {
            // SAFETY: the buffer holds `world` stretches and stays until the stream is idle.
            unsafe { (nccl.all_gather)(own, at(buffer, 0), bytes, BYTE, communicator, stream) }
        })
    }

    /// One message of `mine.len()` bytes, the same on all ranks, from each.
    fn gather_equal(&mut self, operation: &str, start: Instant, mine: &[u8]) -> Result<Vec<u8>, CollectiveError> {
        let buffer = self.prepare(operation, start, self.world * mine.len())?;
        self.device.upload(self.rank * mine.len(), mine).map_err(|e| failed(operation, start, e))?;
        self.gather(operation, start, buffer, mine.len())?;
        let mut all = vec![0u8; self.world * mine.len()];
        self.device.download(0, &mut all).map_err(|e| failed(operation, start, e))?;
        Ok(all)
    }
}

const FLOAT: c_int = ncclDataType_t::ncclFloat32 as c_int;
const BYTE: c_int = ncclDataType_t::ncclUint8 as c_int;
const SUM: c_int = ncclRedOp_t::ncclSum as c_int;

fn at(buffer: u64, offset: usize) -> *mut c_void {
    (buffer as usize + offset) as *mut c_void
}

fn failed(operation: &str, start: Instant, reason: String) -> CollectiveError {
    CollectiveError::Failed { operation: operation.to_owned(), seconds: start.elapsed().as_secs_f64(), reason }
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

impl Drop for Nccl {
    /// Waits for nobody: a group that has done its work has nothing queued, so aborting it loses nothing.
    fn drop(&mut self) {
        self.end();
    }
}
