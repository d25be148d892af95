//! One GPU as a group uses it: a stream for the group's operations, one for copies beside them, and one buffer that grows. Nothing here waits for
//! another rank.

use super::library::{Code, Driver, NOT_READY};
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use std::ffi::c_void;

/// The stream does not wait for the default stream, nor that for it.
const NON_BLOCKING: u32 = 1;

/// The context of a device on this thread, its streams, and device memory.
pub struct Device {
    driver: &'static Driver,
    stream: CUstream,
    aside: CUstream,
    buffer: CUdeviceptr,
    bytes: usize,
}

impl Device {
    /// Device number `ordinal`, made current on the calling thread.
    ///
    /// # Errors
    /// There is no driver or no such device.
    pub fn open(ordinal: usize) -> Result<Self, String> {
        let driver = Driver::get()?;
        let check =
            |what: &str, code: Code| driver.check(what, code).map_err(|e| format!("CUDA device {ordinal}: {e}"));
        let (mut device, mut context) = (0, std::ptr::null_mut());
        let mut opened =
            Self { driver, stream: std::ptr::null_mut(), aside: std::ptr::null_mut(), buffer: 0, bytes: 0 };
        // SAFETY: each call writes one value through a valid pointer and reads values that earlier calls returned.
        unsafe {
            check("cuInit", (driver.init)(0))?;
            check("cuDeviceGet", (driver.device_get)(&mut device, ordinal as i32))?;
            check("cuDevicePrimaryCtxRetain", (driver.context_retain)(&mut context, device))?;
            check("cuCtxSetCurrent", (driver.context_set)(context))?;
            check("cuStreamCreate", (driver.stream_create)(&mut opened.stream, NON_BLOCKING))?;
            check("cuStreamCreate", (driver.stream_create)(&mut opened.aside, NON_BLOCKING))?;
        }
        Ok(opened)
    }

    /// For the group's operations.
    pub fn stream(&self) -> CUstream {
        self.stream
    }

    /// Device memory of at least `bytes`, whose contents are undefined. The streams must be idle.
    ///
    /// # Errors
    /// The device has not that much.
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
    ///
    /// # Errors
    /// They are outside the buffer, or the driver's.
    pub fn zero(&self, at: usize, bytes: usize) -> Result<(), String> {
        if bytes == 0 {
            return Ok(());
        }
        let to = self.inside(at, bytes)?;
        // SAFETY: the stretch lies inside the buffer.
        self.driver.check("cuMemsetD8Async", unsafe { (self.driver.fill)(to, 0, bytes, self.stream) })
    }

    /// Queues a copy to offset `at`, before the operations that follow. The driver has read pageable memory, such as a slice's, by the time it returns.
    ///
    /// # Errors
    /// As for `zero`.
    pub fn upload<T: Copy>(&self, at: usize, data: &[T]) -> Result<(), String> {
        self.to_device(at, data, self.stream)
    }

    /// Copies from offset `at`. Only called when the stream is idle, so that it does not wait for another rank.
    ///
    /// # Errors
    /// As for `zero`.
    pub fn download<T: Copy>(&self, at: usize, data: &mut [T]) -> Result<(), String> {
        self.to_host(at, data, self.stream)
    }

    /// Copies to offset `at` while an operation on another part of the buffer is under way.
    ///
    /// # Errors
    /// As for `zero`.
    pub fn upload_aside(&self, at: usize, data: &[u8]) -> Result<(), String> {
        self.to_device(at, data, self.aside)?;
        // Waits for the copy alone: nothing else is ever queued there.
        while !self.done(self.aside)? {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Copies from offset `at` while an operation on another part of the buffer is under way.
    ///
    /// # Errors
    /// As for `zero`.
    pub fn download_aside(&self, at: usize, data: &mut [u8]) -> Result<(), String> {
        self.to_host(at, data, self.aside)
    }

    fn to_device<T: Copy>(&self, at: usize, data: &[T], stream: CUstream) -> Result<(), String> {
        let bytes = size_of_val(data);
        if bytes == 0 {
            return Ok(());
        }
        let to = self.inside(at, bytes)?;
        // SAFETY: source and target hold `bytes`.
        let code = unsafe { (self.driver.to_device)(to, data.as_ptr().cast::<c_void>(), bytes, stream) };
        self.driver.check("cuMemcpyHtoDAsync", code)
    }

    /// The driver has written pageable memory, such as a slice's, by the time it returns.
    fn to_host<T: Copy>(&self, at: usize, data: &mut [T], stream: CUstream) -> Result<(), String> {
        let bytes = size_of_val(data);
        if bytes == 0 {
            return Ok(());
        }
        let from = self.inside(at, bytes)?;
        // SAFETY: source and target hold `bytes`; every caller's T is a number, for which all bits are valid.
        let code = unsafe { (self.driver.to_host)(data.as_mut_ptr().cast::<c_void>(), from, bytes, stream) };
        self.driver.check("cuMemcpyDtoHAsync", code)
    }

    /// Whether all queued operations are done.
    ///
    /// # Errors
    /// One of them failed.
    pub fn idle(&self) -> Result<bool, String> {
        self.done(self.stream)
    }

    fn done(&self, stream: CUstream) -> Result<bool, String> {
        // SAFETY: the stream is this device's.
        match unsafe { (self.driver.stream_query)(stream) } {
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

    /// Leaves the buffer allocated for good: freeing it waits for whatever still runs on the device. Bytes of it.
    pub fn abandon(&mut self) -> usize {
        self.buffer = 0;
        std::mem::take(&mut self.bytes)
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
        for stream in [self.stream, self.aside].into_iter().filter(|s| !s.is_null()) {
            // SAFETY: created here, destroyed once.
            unsafe { (self.driver.stream_destroy)(stream) };
        }
    }
}
