//! Calls of the library that end: begun on buffers that outlive them, polled under a deadline, each after a roll call.

use super::Mpi;
use crate::collective::CollectiveError;
use mpi::ffi::{self, MPI_Comm, MPI_Datatype, MPI_Request};
use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Polls before the first pause: most calls are answered at once.
const SPINS: u32 = 200;
const PAUSES: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(1)];
/// How often deadline and interrupt are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Tag of the words that every rank sends to every other before a call.
const ROLL_CALL: c_int = 7;

/// A call of the library that was begun.
struct Begun {
    request: MPI_Request,
    code: c_int,
}

/// Begins a call.
fn begin(f: impl FnOnce(*mut MPI_Request) -> c_int) -> Begun {
    // SAFETY: the null request is a constant of the library.
    let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
    let code = f(&mut request);
    Begun { request, code }
}

impl Mpi {
    /// Waits for a call; `late` says who has not come.
    fn finish(
        &mut self,
        operation: &str,
        started: Instant,
        begun: Begun,
        late: impl Fn() -> Vec<usize>,
    ) -> Result<(), CollectiveError> {
        self.poll(operation, started, begun, late).inspect_err(|_| self.broken = true)
    }

    fn poll(
        &self,
        operation: &str,
        started: Instant,
        begun: Begun,
        late: impl Fn() -> Vec<usize>,
    ) -> Result<(), CollectiveError> {
        let Begun { mut request, mut code } = begun;
        let (mut polls, mut looked) = (0u32, Instant::now());
        loop {
            let mut done: c_int = 0;
            if code == ffi::MPI_SUCCESS as c_int {
                // SAFETY: `request` is a request of this library that has not completed yet.
                code = unsafe { ffi::MPI_Test(&mut request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
            }
            if code != ffi::MPI_SUCCESS as c_int {
                let seconds = started.elapsed().as_secs_f64();
                return Err(CollectiveError::Failed { operation: operation.into(), seconds, reason: text(code) });
            }
            if done != 0 {
                return Ok(());
            }
            polls += 1;
            match polls {
                0..SPINS => std::hint::spin_loop(),
                SPINS..2000 => std::thread::sleep(PAUSES[0]),
                _ => std::thread::sleep(PAUSES[1]),
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.patience.check(operation, started, &late)?;
            }
        }
    }

    /// Every rank tells every other which call it is at, so that a deadline can name who is missing and no two calls are mixed up.
    pub(super) fn roll_call(&mut self, operation: &'static str, started: Instant) -> Result<(), CollectiveError> {
        if self.broken {
            let reason = "an earlier call of this group failed".into();
            return Err(CollectiveError::Failed { operation: operation.into(), seconds: 0.0, reason });
        }
        self.calls += 1;
        let kind = operation.bytes().fold(0u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let word = [self.calls, kind];
        // Leaked if the call is given up, see the top of the file.
        let mut sent = ManuallyDrop::new(Box::new(word));
        let mut heard = ManuallyDrop::new(vec![[0u64; 2]; self.world].into_boxed_slice());
        let (comm, words) = (self.comm, 2 as c_int);
        // SAFETY: constant of the library.
        let kind_of_word: MPI_Datatype = unsafe { ffi::RSMPI_UINT64_T };
        let others = (0..self.world).filter(|r| *r != self.rank);
        let mut listening = Vec::new();
        let mut speaking = Vec::new();
        for other in others {
            let place = heard.as_mut_ptr().wrapping_add(other).cast();
            // SAFETY: `heard` holds one pair of words a rank and lives until the requests have completed, or for ever.
            let begun =
                begin(|r| unsafe { ffi::MPI_Irecv(place, words, kind_of_word, other as c_int, ROLL_CALL, comm, r) });
            listening.push((other, begun));
            // SAFETY: as above, `sent` is only read.
            let begun = begin(|r| unsafe {
                ffi::MPI_Isend(sent.as_mut_ptr().cast(), words, kind_of_word, other as c_int, ROLL_CALL, comm, r)
            });
            speaking.push((other, begun));
        }
        let mut waiting: Vec<(usize, MPI_Request)> = listening.iter().map(|(r, b)| (*r, b.request)).collect();
        for (other, begun) in listening {
            let silent = || waiting.iter().filter(|(_, request)| !arrived(*request)).map(|(rank, _)| *rank).collect();
            let heard = self.poll(operation, started, begun, silent);
            heard.inspect_err(|_| self.broken = true)?;
            waiting.retain(|(rank, _)| *rank != other);
        }
        for (other, begun) in speaking {
            self.finish(operation, started, begun, || vec![other])?;
        }
        let strange =
            heard.iter().enumerate().find(|(r, said)| *r != self.rank && **said != word).map(|(r, s)| (r, s[0]));
        // SAFETY: all requests have completed, nobody else holds these boxes.
        unsafe {
            ManuallyDrop::drop(&mut sent);
            ManuallyDrop::drop(&mut heard);
        }
        let Some((rank, call)) = strange else { return Ok(()) };
        self.broken = true;
        let reason = format!("rank {rank} is at another call ({call}, this one is {})", self.calls);
        Err(CollectiveError::Arguments { operation, reason })
    }

    /// One call on staging buffers and tables of counts that outlive it whatever happens. Returns both buffers.
    pub(super) fn staged<T: Copy + Default>(
        &mut self,
        operation: &'static str,
        started: Instant,
        send: Vec<T>,
        receive: usize,
        tables: Vec<Vec<c_int>>,
        call: impl FnOnce(*const c_void, *mut c_void, &[*const c_int], MPI_Comm, *mut MPI_Request) -> c_int,
    ) -> Result<(Vec<T>, Vec<T>), CollectiveError> {
        let (send, mut tables) = (ManuallyDrop::new(send), ManuallyDrop::new(tables));
        let mut out = ManuallyDrop::new(vec![T::default(); receive]);
        let addresses: Vec<*const c_int> = tables.iter().map(|t| t.as_ptr()).collect();
        let begun = begin(|r| call(send.as_ptr().cast(), out.as_mut_ptr().cast(), &addresses, self.comm, r));
        // The roll call was answered by all: who is late now is not known.
        self.finish(operation, started, begun, Vec::new)?;
        // SAFETY: the call has completed, nobody else reads the tables; dropped once.
        unsafe { ManuallyDrop::drop(&mut tables) };
        Ok((ManuallyDrop::into_inner(send), ManuallyDrop::into_inner(out)))
    }
}

/// Whether a message has come, without completing its request.
fn arrived(request: MPI_Request) -> bool {
    let mut done: c_int = 0;
    // SAFETY: the request is alive: it is only completed after it was taken off the list of those waited for.
    let code = unsafe { ffi::MPI_Request_get_status(request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
    code == ffi::MPI_SUCCESS as c_int && done != 0
}

/// The library's words for an error.
fn text(code: c_int) -> String {
    let mut buffer = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length: c_int = 0;
    // SAFETY: the buffer has the length that the standard asks for.
    unsafe { ffi::MPI_Error_string(code, buffer.as_mut_ptr().cast(), &mut length) };
    let words = buffer.get(..length.max(0) as usize).unwrap_or_default();
    format!("MPI says: {}", String::from_utf8_lossy(words))
}

/// Ends the process if the returned guard lives longer than `deadline`: some calls of the library cannot be given up.
pub(super) fn watchdog(deadline: Duration, why: &'static str) -> mpsc::Sender<()> {
    let (guard, ended) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        if ended.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout) {
            quorum_core::logging::fail(&format!("{why} (after {:.0} s)", deadline.as_secs_f64()));
            std::process::exit(1);
        }
    });
    guard
}
