//! The functions of the CUDA driver and of NCCL that Quorum calls itself, looked up in the libraries of the machine at the first use.
//! The types are cudarc's; its loader is not used, because it does not look for `libnccl.so.2` and panics where there is no library.

use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUstream};
use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// What NCCL's and the driver's functions return; 0 is success.
pub type Code = c_int;

/// What was called goes on in the background.
pub const IN_PROGRESS: Code = 7;
/// cuStreamQuery: work of the stream is still under way.
pub const NOT_READY: Code = 600;

macro_rules! table {
    ($(#[$doc:meta])* $table:ident, $names:expr, { $($field:ident: $symbol:literal fn($($argument:ty),*) -> $result:ty,)* }) => {
        $(#[$doc])*
        pub struct $table {
            $(#[doc = $symbol] pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $table {
            /// The machine's library, loaded at the first call and kept for ever.
            ///
            /// # Errors
            /// There is none, or one that is too old.
            pub fn get() -> Result<&'static Self, String> {
                static TABLE: OnceLock<Result<$table, String>> = OnceLock::new();
                TABLE.get_or_init(Self::load).as_ref().map_err(Clone::clone)
            }

            fn load() -> Result<Self, String> {
                let library = open(&$names)?;
                let table = Self {
                    // SAFETY: the symbol has this signature in every release of the library since the one the constants here name.
                    $($field: *unsafe { library.get($symbol) }.map_err(|e| format!("{}: {e}", $names[0]))?,)*
                };
                // The functions stay valid because the library is never closed.
                std::mem::forget(library);
                Ok(table)
            }
        }
    };
}

fn open(names: &[&str]) -> Result<libloading::Library, String> {
    let mut reasons = Vec::new();
    for name in names {
        // SAFETY: these are the vendor's libraries; loading them runs their initialisers only.
        match unsafe { libloading::Library::new(*name) } {
            Ok(library) => return Ok(library),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(format!(
        "{} cannot be loaded ({}); install it or add its folder to LD_LIBRARY_PATH",
        names[0],
        reasons.join("; ")
    ))
}

table!(
    /// The CUDA driver.
    Driver, ["libcuda.so.1"], {
        init: "cuInit" fn(c_uint) -> Code,
        device_get: "cuDeviceGet" fn(*mut CUdevice, c_int) -> Code,
        context_retain: "cuDevicePrimaryCtxRetain" fn(*mut CUcontext, CUdevice) -> Code,
        context_set: "cuCtxSetCurrent" fn(CUcontext) -> Code,
        allocate: "cuMemAlloc_v2" fn(*mut CUdeviceptr, usize) -> Code,
        free: "cuMemFree_v2" fn(CUdeviceptr) -> Code,
        to_device: "cuMemcpyHtoDAsync_v2" fn(CUdeviceptr, *const c_void, usize, CUstream) -> Code,
        to_host: "cuMemcpyDtoHAsync_v2" fn(*mut c_void, CUdeviceptr, usize, CUstream) -> Code,
        fill: "cuMemsetD8Async" fn(CUdeviceptr, u8, usize, CUstream) -> Code,
        stream_create: "cuStreamCreate" fn(*mut CUstream, c_uint) -> Code,
        stream_query: "cuStreamQuery" fn(CUstream) -> Code,
        stream_destroy: "cuStreamDestroy_v2" fn(CUstream) -> Code,
        error_name: "cuGetErrorName" fn(Code, *mut *const c_char) -> Code,
    }
);

table!(
    /// NCCL, 2.14 or newer.
    Functions, ["libnccl.so.2", "libnccl.so"], {
        version: "ncclGetVersion" fn(*mut c_int) -> Code,
        unique_id: "ncclGetUniqueId" fn(*mut ncclUniqueId) -> Code,
        init: "ncclCommInitRankConfig" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> Code,
        state: "ncclCommGetAsyncError" fn(ncclComm_t, *mut Code) -> Code,
        abort: "ncclCommAbort" fn(ncclComm_t) -> Code,
        finalize: "ncclCommFinalize" fn(ncclComm_t) -> Code,
        destroy: "ncclCommDestroy" fn(ncclComm_t) -> Code,
        all_reduce: "ncclAllReduce" fn(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, CUstream) -> Code,
        reduce_scatter: "ncclReduceScatter" fn(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, CUstream) -> Code,
        all_gather: "ncclAllGather" fn(*const c_void, *mut c_void, usize, c_int, ncclComm_t, CUstream) -> Code,
        broadcast: "ncclBroadcast" fn(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, CUstream) -> Code,
        send: "ncclSend" fn(*const c_void, usize, c_int, c_int, ncclComm_t, CUstream) -> Code,
        receive: "ncclRecv" fn(*mut c_void, usize, c_int, c_int, ncclComm_t, CUstream) -> Code,
        group_start: "ncclGroupStart" fn() -> Code,
        group_end: "ncclGroupEnd" fn() -> Code,
        error_string: "ncclGetErrorString" fn(Code) -> *const c_char,
    }
);

impl Driver {
    /// `Ok` for success, else the driver's name of the error.
    ///
    /// # Errors
    /// Any other code than 0.
    pub fn check(&self, what: &str, code: Code) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: writes one pointer to a constant string.
        let known = unsafe { (self.error_name)(code, &mut name) } == 0 && !name.is_null();
        // SAFETY: the driver returned a string that lives for ever.
        let name =
            if known { unsafe { CStr::from_ptr(name) }.to_string_lossy() } else { format!("error {code}").into() };
        Err(format!("{what}: {name}"))
    }
}

impl Functions {
    /// `Ok` for success or "in progress", else NCCL's words.
    ///
    /// # Errors
    /// Any other code.
    pub fn check(&self, code: Code) -> Result<(), String> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: takes any code and returns a constant string.
        let words = unsafe { (self.error_string)(code) };
        if words.is_null() {
            return Err(format!("NCCL error {code}"));
        }
        // SAFETY: the string lives for ever.
        Err(format!("NCCL: {}", unsafe { CStr::from_ptr(words) }.to_string_lossy()))
    }
}
