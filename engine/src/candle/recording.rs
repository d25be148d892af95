//! A step that a device records once and then repeats by one launch, instead of being handed each of its kernels again. A recording is
//! compared with the step itself before it is trusted; where it cannot be had or computes something else, the step goes on unrecorded.

use crate::error::EngineError;
use candle_core::{DType, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

type Result<T> = std::result::Result<T, EngineError>;

/// Largest difference between recorded and unrecorded results, as a share of the largest of them: what other kernels of the same library
/// differ by in bf16.
const CLOSE: f32 = 1.0 / 64.0;

/// What can record.
pub trait Recorder {
    type Recorded;
    /// Runs `work` as it will be recorded, so that everything it needs besides its kernels is in place.
    fn prepare(&self, work: &dyn Fn() -> Result<()>) -> Result<()>;
    /// Records all that `work` queues, and runs none of it.
    fn record(&self, work: &dyn Fn() -> Result<()>) -> Result<Self::Recorded>;
    fn launch(&self, recorded: &Self::Recorded) -> Result<()>;
    /// Whether steps are recorded on this device.
    fn enabled(&self) -> &AtomicBool;
}

/// How far the recording of one step is; what the step reads and writes must keep its place from run to run.
#[derive(Default)]
pub enum Recording<R> {
    #[default]
    New,
    Prepared,
    Ready(R),
}

impl<R> Recording<R> {
    /// Runs `work`, which writes all of `out`: itself the first time, recorded and for comparison itself the second time, by its recording
    /// from then on. Where recording fails it is switched off for the device.
    pub fn run<D>(&mut self, device: &D, out: &Tensor, work: &dyn Fn() -> Result<()>) -> Result<()>
    where
        D: Recorder<Recorded = R>,
    {
        if !device.enabled().load(Ordering::Relaxed) {
            return work();
        }
        match self {
            Self::Ready(recorded) => return device.launch(recorded),
            Self::New => {
                device.prepare(work)?;
                *self = Self::Prepared;
            }
            Self::Prepared => match attempt(device, out, work) {
                Ok(recorded) => *self = Self::Ready(recorded),
                Err(error) => {
                    device.enabled().store(false, Ordering::Relaxed);
                    tracing::warn!(%error, "decoding goes on without recorded steps: slower, not different");
                    work()?;
                }
            },
        }
        Ok(())
    }
}

/// Records `work`, launches the recording, then runs `work` itself and compares what both left in `out`.
fn attempt<D: Recorder>(device: &D, out: &Tensor, work: &dyn Fn() -> Result<()>) -> Result<D::Recorded> {
    let recorded = device.record(work)?;
    device.launch(&recorded)?;
    let repeated = out.copy()?;
    work()?;
    let widest = |x: Tensor| Ok::<f32, EngineError>(x.abs()?.to_dtype(DType::F32)?.flatten_all()?.max(0)?.to_scalar()?);
    let (difference, largest) = (widest((&repeated - out)?)?, widest(out.clone())?);
    if difference <= CLOSE * largest {
        return Ok(recorded);
    }
    Err(EngineError::Device(format!("a recorded step differs by {difference:e} from the step itself ({largest:e})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::cell::Cell;

    /// What a recording does: the step again, something else, nothing, or it cannot be made.
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Right,
        Wrong,
        Idle,
        Refused,
    }

    struct Stand<'a> {
        kind: Kind,
        enabled: AtomicBool,
        out: &'a Tensor,
        input: &'a Cell<f32>,
        launches: Cell<usize>,
    }

    fn put(out: &Tensor, x: f32) -> Result<()> {
        Ok(out.slice_set(&Tensor::from_slice(&[x, 2.0 * x], 2, &Device::Cpu)?, 0, 0)?)
    }

    impl Recorder for Stand<'_> {
        type Recorded = ();

        fn enabled(&self) -> &AtomicBool {
            &self.enabled
        }

        fn prepare(&self, work: &dyn Fn() -> Result<()>) -> Result<()> {
            work()
        }

        fn record(&self, _: &dyn Fn() -> Result<()>) -> Result<()> {
            if self.kind == Kind::Refused { Err(EngineError::Device("not here".into())) } else { Ok(()) }
        }

        fn launch(&self, (): &()) -> Result<()> {
            self.launches.set(self.launches.get() + 1);
            match self.kind {
                Kind::Right => put(self.out, self.input.get()),
                Kind::Wrong => put(self.out, self.input.get() + 1.0),
                Kind::Idle | Kind::Refused => Ok(()),
            }
        }
    }

    /// (results of eight steps, times the step itself ran, times its recording did).
    fn steps(kind: Kind, enabled: bool) -> (Vec<f32>, usize, usize) {
        let (out, input, runs) = (Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap(), Cell::new(0.0), Cell::new(0));
        let enabled = AtomicBool::new(enabled);
        let device = Stand { kind, enabled, out: &out, input: &input, launches: Cell::new(0) };
        let work = || {
            runs.set(runs.get() + 1);
            put(&out, input.get())
        };
        let mut results = Vec::new();
        // Two shapes, four steps each.
        for _ in 0..2 {
            let mut recording = Recording::default();
            for _ in 0..4 {
                input.set(input.get() + 1.0);
                recording.run(&device, &out, &work).unwrap();
                results.push(out.to_vec1::<f32>().unwrap()[1]);
            }
        }
        (results, runs.get(), device.launches.get())
    }

    #[test]
    fn a_recording_serves_once_it_agrees_and_none_is_made_where_it_does_not() {
        let right: Vec<f32> = (1..=8).map(|i| 2.0 * i as f32).collect();
        let check = |kind, enabled, runs, launches| assert_eq!(steps(kind, enabled), (right.clone(), runs, launches));
        check(Kind::Right, true, 4, 6);
        check(Kind::Right, false, 8, 0);
        // The step that was compared runs once more.
        check(Kind::Wrong, true, 9, 1);
        check(Kind::Idle, true, 9, 1);
        check(Kind::Refused, true, 8, 0);
    }
}
