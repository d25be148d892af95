"""Writes archives libcuda.a, libcublas.a, … whose functions load the real library at their first call, so that an executable linked with
them starts on a machine without CUDA and finds out at run time. Without the library a function returns a code that its callers take for
"no device". Usage: python lazy_libraries.py CUDA_HOME NCCL_HOME OUTPUT_FOLDER
"""

import pathlib
import re
import subprocess
import sys
import tempfile

# Name for the linker, names to load, what a function returns where there is none of them.
LIBRARIES = {
    "cuda": (["libcuda.so.1"], 100),  # CUDA_ERROR_NO_DEVICE
    "cublas": (["libcublas.so.13", "libcublas.so"], 1),
    "cublasLt": (["libcublasLt.so.13", "libcublasLt.so"], 1),
    "curand": (["libcurand.so.10", "libcurand.so"], 1),
    "nvrtc": (["libnvrtc.so.13", "libnvrtc.so"], 1),
    "nccl": (["libnccl.so.2", "libnccl.so"], 1),
}

# Keeps every register that can hold an argument, asks for the function's address, and goes on there. One entry a function: the first call
# falls through to `resolve`, later ones jump straight through the slot.
HEAD = """
    .text
resolve_NAME:
    push %rbp
    mov %rsp, %rbp
    push %rdi; push %rsi; push %rdx; push %rcx; push %r8; push %r9; push %rax; push %rax
    sub $128, %rsp
    movdqu %xmm0, (%rsp); movdqu %xmm1, 16(%rsp); movdqu %xmm2, 32(%rsp); movdqu %xmm3, 48(%rsp)
    movdqu %xmm4, 64(%rsp); movdqu %xmm5, 80(%rsp); movdqu %xmm6, 96(%rsp); movdqu %xmm7, 112(%rsp)
    mov %r11, %rdi
    call quorum_lazy_NAME
    mov %rax, %r11
    movdqu (%rsp), %xmm0; movdqu 16(%rsp), %xmm1; movdqu 32(%rsp), %xmm2; movdqu 48(%rsp), %xmm3
    movdqu 64(%rsp), %xmm4; movdqu 80(%rsp), %xmm5; movdqu 96(%rsp), %xmm6; movdqu 112(%rsp), %xmm7
    add $128, %rsp
    pop %rax; pop %rax; pop %r9; pop %r8; pop %rcx; pop %rdx; pop %rsi; pop %rdi
    pop %rbp
    jmp *%r11
"""

FUNCTION = """
    .globl SYMBOL
    .type SYMBOL, @function
SYMBOL:
    jmp *slot_NUMBER(%rip)
first_NUMBER:
    mov $NUMBER, %r11
    jmp resolve_NAME
    .data
    .balign 8
slot_NUMBER: .quad first_NUMBER
    .text
"""

LOADER = """
#include <dlfcn.h>
#include <stddef.h>
static const char *const libraries[] = {LIBRARIES, NULL};
static const char *const symbols[] = {SYMBOLS};
extern void *quorum_slots_NAME[] __attribute__((visibility("hidden")));
static int missing(void) { return CODE; }
__attribute__((visibility("hidden"))) void *quorum_lazy_NAME(size_t number) {
    static void *volatile library;
    void *found = library, *function = NULL;
    for (int i = 0; !found && libraries[i]; i++) found = dlopen(libraries[i], RTLD_NOW | RTLD_GLOBAL);
    library = found;
    if (found) function = dlsym(found, symbols[number]);
    if (!function) return (void *)missing;
    *(void *volatile *)quorum_slots_NAME[number] = function;
    return function;
}
"""


def driver_functions(header: str) -> set[str]:
    """The driver's library is not in the toolchain: its functions are those that the header declares or maps to a newer version."""
    names = set(re.findall(r"\b(cu[A-Z]\w*)\s*\(", header))
    names |= {name for pair in re.findall(r"#\s*define\s+(cu[A-Z]\w*)\s+(?:__CUDA_API_PT\w+\()?(cu[A-Z]\w*)", header) for name in pair}
    return names | {name + suffix for name in names for suffix in ("_v2", "_v3", "_v4")}


def exported(library: pathlib.Path) -> set[str]:
    table = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    return {line.split()[2].split("@")[0] for line in table.splitlines() if line.split()[1] == "T"}


def write(name: str, symbols: list[str], archive: pathlib.Path, folder: pathlib.Path) -> None:
    names, code = LIBRARIES[name]
    functions = [FUNCTION.replace("SYMBOL", s).replace("NUMBER", str(i)) for i, s in enumerate(symbols)]
    slots = "".join(f"    .quad slot_{i}\n" for i in range(len(symbols)))
    slots = f"    .data\n    .balign 8\n    .globl quorum_slots_NAME\n    .hidden quorum_slots_NAME\nquorum_slots_NAME:\n{slots}"
    note = '    .section .note.GNU-stack,"",@progbits\n'
    (folder / f"{name}.s").write_text((HEAD + "".join(functions) + slots + note).replace("NAME", name))
    loader = LOADER.replace("CODE", str(code)).replace("LIBRARIES", ", ".join(f'"{n}"' for n in names))
    loader = loader.replace("SYMBOLS", ", ".join(f'"{s}"' for s in symbols)).replace("NAME", name)
    (folder / f"{name}.c").write_text(loader)
    objects = [folder / f"{name}.s.o", folder / f"{name}.c.o"]
    subprocess.run(["cc", "-c", folder / f"{name}.s", "-o", objects[0]], check=True)
    subprocess.run(["cc", "-O2", "-fPIC", "-Wall", "-Werror", "-c", folder / f"{name}.c", "-o", objects[1]], check=True)
    archive.unlink(missing_ok=True)
    subprocess.run(["ar", "rcs", archive, *objects], check=True)


def main() -> None:
    cuda, nccl, folder = (pathlib.Path(argument) for argument in sys.argv[1:4])
    folder.mkdir(parents=True, exist_ok=True)
    for name in LIBRARIES:
        if name == "cuda":
            symbols = driver_functions((cuda / "include/cuda.h").read_text())
        else:
            home = nccl if name == "nccl" else cuda
            symbols = exported((home / f"lib/{LIBRARIES[name][0][0]}").resolve())
        with tempfile.TemporaryDirectory() as scratch:
            write(name, sorted(symbols), folder / f"lib{name}.a", pathlib.Path(scratch))
    # The runtime library that candle's kernels register with; the static one looks for the driver itself.
    runtime = folder / "libcudart.a"
    runtime.unlink(missing_ok=True)
    runtime.symlink_to((cuda / "lib/libcudart_static.a").resolve())


main()
