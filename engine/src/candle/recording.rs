//! A step that a device records once and then repeats by one launch, instead of being handed each of its kernels again. A recording is
//! compared with the step itself before it is trusted; where it cannot be had, the step goes on unrecorded.

use crate::error::EngineError;
use candle_core::{DType, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

type Result<T> = std::result::Result<T, EngineError>;

/// Largest sum of differences between recorded and unrecorded results, as a share of the sum of the results themselves: what other kernels of
/// the same library differ by, in f32 and in bf16.
const CLOSE: [f32; 2] = [1e-4, 1.0 / 64.0];

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
    /// from then on. Where it cannot be recorded or launched, it runs itself, and nothing more is recorded on this device.
    ///
    /// # Errors
    /// Of `work`; and if the recording computed something else, which may have spoilt what `work` reads: nothing more is recorded then.
    pub fn run<D>(&mut self, device: &D, out: &Tensor, work: &dyn Fn() -> Result<()>) -> Result<()>
    where
        D: Recorder<Recorded = R>,
    {
        if !device.enabled().load(Ordering::Relaxed) {
            return work();
        }
        let done = match self {
            Self::New => {
                device.prepare(work)?;
                *self = Self::Prepared;
                return Ok(());
            }
            Self::Prepared => begin(device, out, work),
            Self::Ready(recorded) => device.launch(recorded).map(|()| None),
        };
        match done {
            Ok(None) => return Ok(()),
            Ok(Some(recorded)) => {
                let agreed = compare(out, work);
                device.enabled().store(agreed.is_ok(), Ordering::Relaxed);
                *self = Self::Ready(recorded);
                return agreed;
            }
            Err(error) => tracing::warn!(%error, "decoding goes on without recorded steps: slower, not different"),
        }
        device.enabled().store(false, Ordering::Relaxed);
        work()
    }
}

/// Records `work`, and launches the recording into an `out` without older results.
fn begin<D: Recorder>(device: &D, out: &Tensor, work: &dyn Fn() -> Result<()>) -> Result<Option<D::Recorded>> {
    let recorded = device.record(work)?;
    out.zero_set()?;
    device.launch(&recorded)?;
    Ok(Some(recorded))
}

/// Runs `work` and compares what it leaves in `out` with what was there.
fn compare(out: &Tensor, work: &dyn Fn() -> Result<()>) -> Result<()> {
    let repeated = out.copy()?;
    work()?;
    // Sums, because they do not lose what is no number.
    let sum = |x: Tensor| Ok::<f32, EngineError>(x.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar()?);
    let (difference, size) = (sum((&repeated - out)?)?, sum(out.clone())?);
    if difference <= CLOSE[usize::from(out.dtype() == DType::BF16)] * size {
        return Ok(());
    }
    let numbers = format!("{difference:e} in sum, of {size:e}");
    Err(EngineError::Device(format!(
        "a recorded decoding step differs from the step itself ({numbers}); QUORUM_GRAPHS=0 does without"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::cell::Cell;

    /// What a recording does: the step again, the same until its third launch, something else, nothing, nothing that is a number, or it
    /// cannot be made.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Kind {
        Right,
        Fleeting,
        Wrong,
        Idle,
        NotANumber,
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
                Kind::Fleeting if self.launches.get() == 3 => Err(EngineError::Device("gone".into())),
                Kind::Right | Kind::Fleeting => put(self.out, self.input.get()),
                Kind::Wrong => put(self.out, self.input.get() * 1.001),
                Kind::NotANumber => put(self.out, f32::NAN),
                Kind::Idle | Kind::Refused => Ok(()),
            }
        }
    }

    /// (results of eight steps, NaN for an error; times the step itself ran; times its recording did).
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
                let done = recording.run(&device, &out, &work);
                results.push(done.map_or(f32::NAN, |()| out.to_vec1::<f32>().unwrap()[1]));
            }
        }
        (results, runs.get(), device.launches.get())
    }

    #[test]
    fn a_recording_serves_once_it_agrees_and_none_is_made_where_it_cannot() {
        let right: Vec<f32> = (1..=8).map(|i| 2.0 * i as f32).collect();
        for (kind, enabled, runs, launches) in [
            (Kind::Right, true, 4, 6),
            (Kind::Right, false, 8, 0),
            (Kind::Refused, true, 8, 0),
            // Steps 2 (compared) and 3 are launched, step 4 is refused.
            (Kind::Fleeting, true, 7, 3),
        ] {
            assert_eq!(steps(kind, enabled), (right.clone(), runs, launches), "{kind:?}");
        }
    }

    #[test]
    fn a_recording_that_computes_something_else_is_an_error_once() {
        for kind in [Kind::Wrong, Kind::Idle, Kind::NotANumber] {
            let (results, runs, launches) = steps(kind, true);
            assert!(results[1].is_nan() && results.iter().filter(|r| r.is_nan()).count() == 1, "{kind:?}: {results:?}");
            assert_eq!((runs, launches), (8, 1), "{kind:?}");
        }
    }
}
