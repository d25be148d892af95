//! Typed declarations of metrics and the macro that lists them. Handles are cheap to make; hot paths keep them.

use metrics::{Label, SharedString};

/// What a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One line of the catalogue.
#[derive(Debug, Clone, Copy)]
pub struct Declared {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// `1`, `s`, `B`, `tok`, `nat`, `step` or `ratio`.
    pub unit: &'static str,
    pub help: &'static str,
}

/// Label values are given in the declared order; their number is checked by the compiler.
macro_rules! handle {
    ($(#[$doc:meta])* $kind:ident, $register:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $kind<const N: usize> {
            pub(crate) name: &'static str,
            pub(crate) labels: [&'static str; N],
        }

        impl<const N: usize> $kind<N> {
            /// The metric with these label values, in declared order.
            pub fn with(&self, values: [&str; N]) -> metrics::$kind {
                metrics::$register!(self.name, labels(self.labels, values))
            }
        }
    };
}

handle!(
    /// Only rises.
    Counter,
    counter
);
handle!(
    /// Goes up and down.
    Gauge,
    gauge
);
handle!(
    /// A distribution.
    Histogram,
    histogram
);

fn labels<const N: usize>(names: [&'static str; N], values: [&str; N]) -> Vec<Label> {
    names.into_iter().zip(values).map(|(name, value)| Label::new(name, SharedString::from(value.to_owned()))).collect()
}

/// Tells the installed recorder the help text of every metric. Call once, after installing it.
pub fn describe() {
    for m in super::ALL {
        match m.kind {
            Kind::Counter => metrics::describe_counter!(m.name, m.help),
            Kind::Gauge => metrics::describe_gauge!(m.name, m.help),
            Kind::Histogram => metrics::describe_histogram!(m.name, m.help),
        }
    }
}

/// Sets `quorum_build_info` of this process. `features` are those of the executable, each with whether it was built in; the revision is the value
/// of QUORUM_REVISION when this crate was built.
pub fn announce(features: &[(&str, bool)]) {
    let revision = option_env!("QUORUM_REVISION").unwrap_or("unknown");
    let built: Vec<&str> = std::iter::once("cpu").chain(features.iter().filter(|f| f.1).map(|f| f.0)).collect();
    super::BUILD_INFO.with([env!("CARGO_PKG_VERSION"), revision, &built.join(",")]).set(1.0);
}

macro_rules! catalogue {
    (@count) => { 0 };
    (@count $head:literal $(, $tail:literal)*) => { 1 + catalogue!(@count $($tail),*) };
    (@static counter $ident:ident $name:literal [$($label:literal),*] $help:literal) => {
        #[doc = $help]
        pub const $ident: Counter<{ catalogue!(@count $($label),*) }> = Counter { name: $name, labels: [$($label),*] };
    };
    (@static gauge $ident:ident $name:literal [$($label:literal),*] $help:literal) => {
        #[doc = $help]
        pub const $ident: Gauge<{ catalogue!(@count $($label),*) }> = Gauge { name: $name, labels: [$($label),*] };
    };
    (@static histogram $ident:ident $name:literal [$($label:literal),*] $help:literal) => {
        #[doc = $help]
        pub const $ident: Histogram<{ catalogue!(@count $($label),*) }> = Histogram { name: $name, labels: [$($label),*] };
    };
    (@kind counter) => { Kind::Counter };
    (@kind gauge) => { Kind::Gauge };
    (@kind histogram) => { Kind::Histogram };
    ($($kind:ident $ident:ident: $name:literal [$($label:literal),*] $unit:literal $help:literal;)*) => {
        $(catalogue!(@static $kind $ident $name [$($label),*] $help);)*

        /// Every metric of Quorum.
        pub const ALL: &[Declared] = &[
            $(Declared { name: $name, kind: catalogue!(@kind $kind), labels: &[$($label),*], unit: $unit, help: $help },)*
        ];
    };
}
pub(super) use catalogue;
