//! Runs many cases, each replayable from its number, under a watchdog.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::aged::{Aged, build};
use super::damage::{damage, flip, metadata_bytes};
use super::forge::forge;
use super::forge_items::forge_items;
use super::memory::peak_of;
use super::mend::{Mended, mend};
use super::probe::{Outcome, probe};
use super::script::{Script, random};
use super::targets::{self, corpus, mutated};

/// A case that takes longer than this hangs: the process is ended, with the case's name.
const HANGS: Duration = Duration::from_secs(180);

/// Most memory that a case may take, in bytes. The volume is 64 MiB, its caches 12 MiB.
const MOST_MEMORY: usize = 700 << 20;

/// What is done to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Damage in one place.
    Damage,
    /// The same on a volume with a deep tree.
    DeepDamage,
    /// One byte of metadata after the other, damaged and repaired; the number, modulo that of all bytes, is the byte's.
    EveryByte,
    /// Changes with right checksums.
    Forge,
    /// Single structures, mutated.
    Bytes,
    /// Damage in one place, repaired.
    Repair,
    /// Changes with right checksums, repaired.
    RepairForged,
    /// Well-formed items that do not agree with the others, mounted as they are, and repaired.
    Items,
}

impl Mode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Damage => "damage",
            Mode::DeepDamage => "deep-damage",
            Mode::EveryByte => "every-byte",
            Mode::Forge => "forge",
            Mode::Bytes => "bytes",
            Mode::Repair => "repair",
            Mode::RepairForged => "repair-forged",
            Mode::Items => "items",
        }
    }

    /// All of them.
    pub const ALL: [Mode; 8] = [
        Mode::Damage,
        Mode::DeepDamage,
        Mode::EveryByte,
        Mode::Forge,
        Mode::Bytes,
        Mode::Repair,
        Mode::RepairForged,
        Mode::Items,
    ];

    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }
}

/// The volume that most cases use.
pub fn small() -> &'static Aged {
    static AGED: OnceLock<Aged> = OnceLock::new();
    AGED.get_or_init(|| build(1, false))
}

/// The volume with a deep tree.
pub fn deep() -> &'static Aged {
    static AGED: OnceLock<Aged> = OnceLock::new();
    AGED.get_or_init(|| build(2, true))
}

/// Runs one case. `Ok(None)`: there is no such case. `Err`: what was done, and what went wrong.
pub fn case(mode: Mode, seed: u64) -> Result<Option<Outcome>, String> {
    let _watched = Watched::new(mode, seed);
    let bytes = random(seed);
    let mut script = Script::new(&bytes);
    let mut touched = HashSet::new();
    let (image, what, want) = match mode {
        Mode::Damage | Mode::Repair => with_want(damage(small(), &mut script), small()),
        Mode::DeepDamage => with_want(damage(deep(), &mut script), deep()),
        Mode::EveryByte => {
            // Another round over the same bytes flips other bits of them.
            let mask = 1 + crate::rng::Rng::new(seed).below(255) as u8;
            match flip(small(), seed % bytes_in_all(), mask) {
                Some(damaged) => with_want(damaged, small()),
                None => return Ok(None),
            }
        }
        Mode::Bytes => return bytes_case(seed).map(|()| Some(Outcome::default())),
        Mode::Forge | Mode::RepairForged => {
            let (image, what) = forge(small(), &mut script);
            (image, what, None)
        }
        Mode::Items => {
            let (image, what, inodes) = forge_items(small(), &mut script);
            touched = inodes;
            (image, what, Some(&small().want))
        }
    };
    let (outcome, peak) = peak_of(|| match mode {
        Mode::Repair | Mode::RepairForged => mend(&image, want, &touched).map(|mended| {
            let repaired = mended == Mended::Repaired;
            Outcome { refused: !repaired, repaired, ..Outcome::default() }
        }),
        // Here nothing is so wrong that it could not be repaired.
        Mode::EveryByte => probe(&image, want).and_then(|outcome| match outcome.reported {
            true => must_mend(&image, want, &touched).map(|()| Outcome { repaired: true, ..outcome }),
            false => Ok(outcome),
        }),
        Mode::Items => probe(&image, None).and_then(|outcome| {
            must_mend(&image, want, &touched).map(|()| Outcome { repaired: true, ..outcome })
        }),
        _ => probe(&image, want),
    });
    let outcome = outcome.map_err(|e| format!("{what}: {e}"))?;
    if peak > MOST_MEMORY {
        return Err(format!("{what}: it took {} MiB of memory", peak >> 20));
    }
    Ok(Some(outcome))
}

fn must_mend(
    image: &blockdev::RamDevice,
    want: Option<&super::probe::Content>,
    touched: &HashSet<u64>,
) -> Result<(), String> {
    match mend(image, want, touched)? {
        Mended::Repaired => Ok(()),
        Mended::Refused(why) => Err(format!("it cannot be repaired: {why}")),
    }
}

fn bytes_case(seed: u64) -> Result<(), String> {
    static CORPUS: OnceLock<Vec<(&'static str, Vec<u8>)>> = OnceLock::new();
    let corpus = CORPUS.get_or_init(|| corpus().into_iter().filter(|(name, _)| *name != "image").collect());
    let (name, bytes) = mutated(corpus, seed);
    std::panic::catch_unwind(|| targets::run(name, &bytes)).map_err(|_| format!("target {name} panics"))
}

type Case = (blockdev::RamDevice, String, Option<&'static super::probe::Content>);

fn with_want((image, what): (blockdev::RamDevice, String), aged: &'static Aged) -> Case {
    (image, what, Some(&aged.want))
}

/// Counts of what became of the images.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Cases run.
    pub cases: u64,
    /// Mounts refused.
    pub refused: u64,
    /// Volumes of which a part could not be read.
    pub errors: u64,
    /// Volumes that fsck complained of.
    pub reported: u64,
    /// Those of them that were repaired, if that was tried.
    pub repaired: u64,
}

impl Counts {
    /// Adds a case.
    pub fn add(&mut self, outcome: Outcome) {
        self.cases += 1;
        self.refused += u64::from(outcome.refused);
        self.errors += u64::from(outcome.errors);
        self.reported += u64::from(outcome.reported);
        self.repaired += u64::from(outcome.repaired);
    }
}

/// Runs cases of all kinds until `until`, from `seed` on, and prints a line for each that fails. Every
/// byte of metadata has its turn, from one chosen by the seed on. Returns how many failed.
pub fn soak(seed: u64, until: Instant) -> u64 {
    // Panics are part of the search: each is reported with its case.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = 0;
    let mut counts = Counts::default();
    let mut byte = crate::rng::Rng::new(seed).below(bytes_in_all());
    for n in 0.. {
        if Instant::now() >= until {
            break;
        }
        let (mode, number) = match n % 8 {
            0 | 1 => (Mode::EveryByte, byte),
            2 | 3 => (Mode::Damage, seed.wrapping_add(n)),
            4 if n % 64 == 4 => (Mode::DeepDamage, seed.wrapping_add(n)),
            4 => (Mode::Bytes, seed.wrapping_add(n)),
            5 if n % 16 == 5 => (Mode::Repair, seed.wrapping_add(n)),
            5 => (Mode::RepairForged, seed.wrapping_add(n)),
            6 => (Mode::Items, seed.wrapping_add(n)),
            _ => (Mode::Forge, seed.wrapping_add(n)),
        };
        match case(mode, number) {
            Ok(outcome) => counts.add(outcome.unwrap_or_default()),
            Err(e) => {
                failed += 1;
                println!("{}", failure_line(mode, number, &e));
            }
        }
        byte += u64::from(mode == Mode::EveryByte);
    }
    println!("{counts:?}, of {} bytes of metadata the next one is {byte}", bytes_in_all());
    failed
}

/// Runs the cases of [`Mode::EveryByte`] from `from` up to `to`, and prints a line for each that fails. The counts, and how
/// many failed.
pub fn every_byte(from: u64, to: u64) -> (Counts, u64) {
    std::panic::set_hook(Box::new(|_| {}));
    let (mut counts, mut failed) = (Counts::default(), 0);
    for number in from..to {
        match case(Mode::EveryByte, number) {
            Ok(outcome) => counts.add(outcome.unwrap_or_default()),
            Err(e) => {
                failed += 1;
                println!("{}", failure_line(Mode::EveryByte, number, &e));
            }
        }
    }
    (counts, failed)
}

/// Cases of [`Mode::EveryByte`] in one round.
pub fn bytes_in_all() -> u64 {
    static BYTES: OnceLock<u64> = OnceLock::new();
    *BYTES.get_or_init(|| metadata_bytes(small()))
}

/// One line that says what failed and how to repeat it.
pub fn failure_line(mode: Mode, number: u64, error: &str) -> String {
    let error = error.replace('\n', " | ");
    let name = mode.name();
    format!(
        "FAILED image {name}:{number}: {error} (replay: cargo run -p dbfs-tests --bin dbfs-soak -- --image {name}:{number})"
    )
}

struct Running {
    name: String,
    since: Instant,
}

static RUNNING: Mutex<Vec<(u64, Running)>> = Mutex::new(Vec::new());

/// A case that the watchdog looks at.
struct Watched(u64);

impl Watched {
    fn new(mode: Mode, seed: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        static DOG: OnceLock<()> = OnceLock::new();
        DOG.get_or_init(|| {
            std::thread::spawn(watch);
        });
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let running = Running { name: format!("{} {seed}", mode.name()), since: Instant::now() };
        RUNNING.lock().unwrap_or_else(|e| e.into_inner()).push((id, running));
        Self(id)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        RUNNING.lock().unwrap_or_else(|e| e.into_inner()).retain(|(id, _)| *id != self.0);
    }
}

fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let running = RUNNING.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, case)) = running.iter().find(|(_, r)| r.since.elapsed() > HANGS) {
            eprintln!("HANGS: case {}", case.name);
            std::process::abort();
        }
    }
}
