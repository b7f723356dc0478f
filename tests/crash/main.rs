//! Crash promises as evidence: workloads on a recorded disk, every state that a crash may leave of it, the real engine on each.
//!
//! `ENVELOPEFS_CRASH_SAMPLES` sets how many images are drawn at each operation where they are too many to look at all,
//! `ENVELOPEFS_CRASH_SEED` which. A failure names its image; `ENVELOPEFS_CRASH_ONLY` looks at that one alone.

mod app;
mod checked;
mod databases;
mod disk;
mod examine;
mod full;
mod logs;
mod names;
mod oracle;
mod regressions;
mod torn;
mod volume;
