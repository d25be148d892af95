//! One GPU as the group uses it: a stream of its own and one buffer that grows. Nothing here waits.

use super::library::{Code, Driver, NOT_READY};
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use std::ffi::c_void;

/// The stream does not wait for the default stream, nor that for it.
const NON_BLOCKING: u32 = 1;

/// The context of a device on this thread, a stream, and device memory.
pub struct Device {
    driver: &'static Driver,
    stream: CUstream,
    buffer: CUdeviceptr,
    bytes: usize,
}

impl Device {
    /// Device number `ordinal`, made current on the calling thread.
    pub fn open(ordinal: usize) -> Result<Self, String> {
        let driver = Driver::get()?;
        let check =
            |what: &str, code: Code| driver.check(what, code).map_err(|e| format!("CUDA device {ordinal}: {e}"));
        let (mut device, mut context, mut stream) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: each call writes one value through a valid pointer and reads values that earlier calls returned.
        unsafe {
            check("cuInit", (driver.init)(0))?;
            check("cuDeviceGet", (driver.device_get)(&mut device, ordinal as i32))?;
            check("cuDevicePrimaryCtxRetain", (driver.context_retain)(&mut context, device))?;
            check("cuCtxSetCurrent", (driver.context_set)(context))?;
            check("cuStreamCreate", (driver.stream_create)(&mut stream, NON_BLOCKING))?;
        }
        Ok(Self { driver, stream, buffer: 0, bytes: 0 })
    }

    pub fn stream(&self) -> CUstream {
        self.stream
    }

    /// Device memory of at least `bytes`, whose contents are undefined. The stream must be idle.
    pub fn reserve(&mut self, bytes: usize) -> Result<CUdeviceptr, String> {
        if self.bytes < bytes {
            self.release();
            let mut buffer = 0;
            // SAFETY: writes the address of a new allocation.
            let code = unsafe { (self.driver.allocate)(&mut buffer, bytes) };
            self.driver.check(&format!("{bytes} bytes of device memory"), code)?;
            (self.buffer, self.bytes) = (buffer, bytes);
        }
        Ok(self.buffer)
    }

    /// Bytes at offset `at` of the buffer become zero.
    pub fn zero(&self, at: usize, bytes: usize) -> Result<(), String> {
        if bytes == 0 {
            return Ok(());
        }
        let to = self.inside(at, bytes)?;
        // SAFETY: the stretch lies inside the buffer.
        self.driver.check("cuMemsetD8Async", unsafe { (self.driver.fill)(to, 0, bytes, self.stream) })
    }

    /// Queues a copy to offset `at`. The driver has read pageable memory, such as a slice's, by the time it returns.
    pub fn upload<T: Copy>(&self, at: usize, data: &[T]) -> Result<(), String> {
        let bytes = size_of_val(data);
        if bytes == 0 {
            return Ok(());
        }
        let to = self.inside(at, bytes)?;
        // SAFETY: source and target hold `bytes`.
        let code = unsafe { (self.driver.to_device)(to, data.as_ptr().cast::<c_void>(), bytes, self.stream) };
        self.driver.check("cuMemcpyHtoDAsync", code)
    }

    /// Copies from offset `at`. Only called when the stream is idle, so that it does not wait for another rank.
    pub fn download<T: Copy>(&self, at: usize, data: &mut [T]) -> Result<(), String> {
        let bytes = size_of_val(data);
        if bytes == 0 {
            return Ok(());
        }
        let from = self.inside(at, bytes)?;
        // SAFETY: source and target hold `bytes`; every caller's T is a number, for which all bits are valid.
        let code = unsafe { (self.driver.to_host)(data.as_mut_ptr().cast::<c_void>(), from, bytes, self.stream) };
        self.driver.check("cuMemcpyDtoHAsync", code)
    }

    /// Whether all queued work is done.
    pub fn idle(&self) -> Result<bool, String> {
        // SAFETY: the stream is this device's.
        match unsafe { (self.driver.stream_query)(self.stream) } {
            NOT_READY => Ok(false),
            code => self.driver.check("cuStreamQuery", code).map(|()| true),
        }
    }

    fn inside(&self, at: usize, bytes: usize) -> Result<CUdeviceptr, String> {
        if at + bytes > self.bytes {
            return Err(format!("bytes {at}..{} are outside the device buffer of {}", at + bytes, self.bytes));
        }
        Ok(self.buffer + at as CUdeviceptr)
    }

    fn release(&mut self) {
        if self.buffer != 0 {
            // SAFETY: allocated here, freed once; an error leaves nothing to do.
            unsafe { (self.driver.free)(self.buffer) };
        }
        (self.buffer, self.bytes) = (0, 0);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.release();
        // SAFETY: created here, destroyed once.
        unsafe { (self.driver.stream_destroy)(self.stream) };
    }
}
