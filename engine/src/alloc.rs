//! Allocator settings that keep large buffers mapped between calls.

/// Raises glibc's mmap and trim thresholds to 1 GiB where it lets us, so that big buffers are not unmapped and faulted in again (a large part of the CPU
/// time of tensor programs otherwise). Call once at the start of a binary; does nothing on other C libraries.
pub fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only changes allocator parameters; these two are documented and any value is valid.
    unsafe {
        // Older versions refuse more than 32 MiB.
        if libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30) == 0 {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        }
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}
