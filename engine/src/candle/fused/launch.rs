//! From tensors to a kernel launch and back: types and lengths are checked here, so that no kernel reads past a tensor.

use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use candle_core::cuda::cudarc::driver::{CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Storage, StorageRef, Tensor, bail};
use half::bf16;

/// Threads of a block of all kernels but the attention's.
pub const BLOCK: usize = 256;

/// A kernel by file and name, and its grid.
pub struct Kernel {
    pub file: File,
    /// Without the suffix of the element type.
    pub name: &'static str,
    /// Element type of the suffix; none if there is one version only.
    pub dtype: Option<DType>,
    pub grid: [usize; 2],
    pub threads: usize,
    /// Bytes of shared memory on top of the kernel's own.
    pub shared: usize,
}

/// Source files in `engine/cuda`.
#[derive(Clone, Copy)]
pub enum File {
    Attention,
    Elementwise,
    Policy,
    RmsNorm,
}

impl File {
    fn name_and_ptx(self) -> (&'static str, &'static str) {
        match self {
            Self::Attention => ("quorum_attention", include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"))),
            Self::Elementwise => ("quorum_elementwise", include_str!(concat!(env!("OUT_DIR"), "/elementwise.ptx"))),
            Self::Policy => ("quorum_policy", include_str!(concat!(env!("OUT_DIR"), "/policy.ptx"))),
            Self::RmsNorm => ("quorum_rms_norm", include_str!(concat!(env!("OUT_DIR"), "/rms_norm.ptx"))),
        }
    }
}

impl Kernel {
    /// One block a row, `BLOCK` threads each.
    pub fn by_row(file: File, name: &'static str, dtype: DType, rows: usize) -> Self {
        Self { file, name, dtype: Some(dtype), grid: [rows, 1], threads: BLOCK, shared: 0 }
    }

    /// One thread an element.
    pub fn by_element(file: File, name: &'static str, dtype: DType, elements: usize) -> Self {
        Self::by_row(file, name, dtype, elements.div_ceil(BLOCK))
    }
}

/// A tensor the kernel reads: its type there and the number of elements the kernel takes for granted.
pub struct Input<'a> {
    pub tensor: &'a Tensor,
    pub dtype: DType,
    pub elements: usize,
}

/// An argument that is no tensor.
#[derive(Clone, Copy)]
pub enum Number {
    U32(u32),
    F32(f32),
}

/// A count as the kernels take it.
pub fn count(value: usize) -> Result<Number> {
    match u32::try_from(value) {
        Ok(value) => Ok(Number::U32(value)),
        Err(_) => bail!("{value} is more than a kernel's 32-bit count holds; use smaller batches"),
    }
}

enum View<'a> {
    F32(CudaView<'a, f32>),
    BF16(CudaView<'a, bf16>),
    U32(CudaView<'a, u32>),
}

/// Runs `kernel(inputs…, outputs…, numbers…)` on the device of the first input; `outputs` are type and shape of what it writes completely.
pub fn launch<const N: usize>(
    kernel: &Kernel,
    inputs: &[Input<'_>],
    outputs: [(DType, &[usize]); N],
    numbers: &[Number],
) -> Result<[Tensor; N]> {
    let held: Vec<(StorageRef<'_>, &Layout)> = inputs.iter().map(|i| i.tensor.storage_and_layout()).collect();
    let views = inputs.iter().zip(&held).map(|(input, (storage, layout))| view(kernel, input, storage, layout));
    let views = views.collect::<Result<Vec<_>>>()?;
    let Some((storage, _)) = held.first() else { bail!("{}: a kernel without inputs", kernel.name) };
    let Storage::Cuda(first) = &**storage else { bail!("{}: a tensor is not on the GPU", kernel.name) };
    let device = first.device().clone();
    let slices = outputs.map(|(dtype, shape)| allocate(&device, dtype, shape.iter().product()));
    let slices = transpose(slices)?;
    if kernel.grid.iter().all(|&blocks| blocks > 0) {
        run(kernel, &device, &views, &slices, numbers)?;
    }
    drop(views);
    let mut shapes = outputs.iter();
    Ok(slices.map(|slice| {
        let shape = shapes.next().map_or(&[][..], |(_, shape)| *shape);
        let storage = CudaStorage { slice, device: device.clone() };
        Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
    }))
}

/// The elements of an input, after the checks that make the launch sound.
fn view<'a>(kernel: &Kernel, input: &Input<'_>, storage: &'a StorageRef<'_>, layout: &Layout) -> Result<View<'a>> {
    let name = kernel.name;
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("{name}: a tensor is not contiguous") };
    let (found, dtype) = (end - start, input.tensor.dtype());
    if found != input.elements || dtype != input.dtype {
        bail!("{name}: expected {} elements of {:?}, found {found} of {dtype:?}", input.elements, input.dtype);
    }
    let Storage::Cuda(storage) = &**storage else { bail!("{name}: a tensor is not on the GPU") };
    Ok(match &storage.slice {
        CudaStorageSlice::F32(x) => View::F32(x.slice(start..end)),
        CudaStorageSlice::BF16(x) => View::BF16(x.slice(start..end)),
        CudaStorageSlice::U32(x) => View::U32(x.slice(start..end)),
        _ => bail!("{name}: no kernel for {dtype:?}; use f32 or bf16"),
    })
}

fn allocate(device: &CudaDevice, dtype: DType, elements: usize) -> Result<CudaStorageSlice> {
    fn new<T: DeviceRepr>(
        device: &CudaDevice,
        elements: usize,
    ) -> Result<candle_core::cuda::cudarc::driver::CudaSlice<T>> {
        // SAFETY: the kernels write every element of their outputs before anything reads them.
        unsafe { device.alloc::<T>(elements) }
    }
    Ok(match dtype {
        DType::F32 => CudaStorageSlice::F32(new(device, elements)?),
        DType::BF16 => CudaStorageSlice::BF16(new(device, elements)?),
        other => bail!("no kernel writes {other:?}"),
    })
}

fn transpose<T, const N: usize>(results: [Result<T>; N]) -> Result<[T; N]> {
    let values = results.into_iter().collect::<Result<Vec<T>>>()?;
    match values.try_into() {
        Ok(values) => Ok(values),
        Err(_) => bail!("a kernel's outputs went missing"),
    }
}

fn run(
    kernel: &Kernel,
    device: &CudaDevice,
    views: &[View<'_>],
    outputs: &[CudaStorageSlice],
    numbers: &[Number],
) -> Result<()> {
    let suffix = match kernel.dtype {
        None => "",
        Some(DType::F32) => "_f32",
        Some(DType::BF16) => "_bf16",
        Some(other) => bail!("{}: no kernel for {other:?}; use f32 or bf16", kernel.name),
    };
    let (module, ptx) = kernel.file.name_and_ptx();
    let function = device.get_or_load_custom_func(&format!("{}{suffix}", kernel.name), module, ptx)?;
    if kernel.shared > 48 << 10 {
        function.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared as i32).w()?;
    }
    let mut builder = function.builder();
    for view in views {
        match view {
            View::F32(x) => builder.arg(x),
            View::BF16(x) => builder.arg(x),
            View::U32(x) => builder.arg(x),
        };
    }
    for output in outputs {
        match output {
            CudaStorageSlice::F32(x) => builder.arg(x),
            CudaStorageSlice::BF16(x) => builder.arg(x),
            _ => bail!("{}: an output of an unknown type", kernel.name),
        };
    }
    for number in numbers {
        match number {
            Number::U32(x) => builder.arg(x),
            Number::F32(x) => builder.arg(x),
        };
    }
    let grid_dim = (u32::try_from(kernel.grid[0])?, u32::try_from(kernel.grid[1])?, 1);
    let config =
        LaunchConfig { grid_dim, block_dim: (kernel.threads as u32, 1, 1), shared_mem_bytes: kernel.shared as u32 };
    // SAFETY: the arguments are of the kernel's types and lengths (`view`), in its order (each caller mirrors its signature).
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}
