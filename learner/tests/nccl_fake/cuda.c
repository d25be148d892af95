// The dozen functions of libcuda.so.1 that the NCCL group calls, on host memory: what is queued on a stream is done at once,
// except for the collectives of nccl.c, which count as pending until every rank has made the call.
#include <stdlib.h>
#include <string.h>

struct stream { volatile int pending; };

int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal > 1 ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { static char contexts[2]; return *context = &contexts[device], 0; }
int cuCtxSetCurrent(void* context) { return context == NULL; }
int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
    void* memory = malloc(bytes);
    if (memory) memset(memory, 0xff, bytes);  // not a number, in every float
    *address = (unsigned long long)memory;
    return memory ? 0 : 2;
}
static int frees;
int fake_frees(void) { return frees; }
int cuMemFree_v2(unsigned long long address) { return frees++, free((void*)address), 0; }
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, struct stream* s) {
    return memcpy((void*)to, from, bytes), s->pending ? 700 : 0;
}
int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, struct stream* s) {
    return memcpy(to, (void*)from, bytes), s->pending ? 700 : 0;
}
int cuMemsetD8Async(unsigned long long to, unsigned char value, size_t bytes, struct stream* s) {
    return memset((void*)to, value, bytes), s->pending ? 700 : 0;
}
int cuStreamCreate(struct stream** s, unsigned flags) { return (*s = calloc(1, sizeof **s)) == NULL || flags != 1; }
int cuStreamQuery(struct stream* s) { return s->pending ? 600 : 0; }
int cuStreamDestroy_v2(struct stream* s) { return free(s), 0; }
int cuGetErrorName(int code, const char** name) {
    *name = code == 101 ? "CUDA_ERROR_INVALID_DEVICE" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_UNKNOWN";
    return 0;
}
