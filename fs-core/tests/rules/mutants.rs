//! Proof that the tests notice: each broken rule of `tests/mutants.md` makes the test that is named
//! there fail.

use std::collections::BTreeSet;
use std::process::Command;

use dbfs_fs_core::mutants::Mutant;

/// Environment variable that names the rule to break, by number.
#[cfg(feature = "mutants")]
pub const VARIABLE: &str = "DBFS_MUTANT";

/// Marks tests in the crate itself.
const UNIT: &str = "unit: ";

/// A line of the table.
#[derive(Debug)]
struct Row {
    number: u8,
    name: String,
    /// Module and name of a test in this program, or of a unit test of the crate.
    test: String,
}

fn table() -> Vec<Row> {
    let text = include_str!("../../../tests/mutants.md");
    let lines = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(|c| c.trim().trim_matches('`')).collect();
        let [_, number, name, _rule, _what, test, _] = cells[..] else { return None };
        let number = number.parse().ok()?;
        Some(Row { number, name: name.to_owned(), test: test.to_owned() })
    });
    lines.collect()
}

/// Names of the tests of this program.
fn tests() -> Vec<String> {
    let out = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().filter_map(|l| l.strip_suffix(": test").map(str::to_owned)).collect()
}

#[test]
fn the_table_lists_every_mutant_once() {
    let listed: Vec<(u8, String)> = table().into_iter().map(|row| (row.number, row.name)).collect();
    let wanted: Vec<(u8, String)> = Mutant::ALL.iter().map(|m| (*m as u8, format!("{m:?}"))).collect();
    assert_eq!(listed, wanted);
    let numbers: BTreeSet<u8> = listed.iter().map(|(n, _)| *n).collect();
    assert_eq!(numbers.len(), listed.len(), "numbers are not used twice");
    assert!(listed.len() >= 30);
    let known = tests();
    for row in table().iter().filter(|row| !row.test.starts_with(UNIT)) {
        assert!(known.contains(&row.test), "there is no test {}", row.test);
    }
}

#[cfg(feature = "mutants")]
mod killing {
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{Row, UNIT, VARIABLE, table};

    /// Runs one test of this program in a process of its own, with a rule broken.
    fn survives(row: &Row) -> bool {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &row.test])
            .env(VARIABLE, row.number.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        let status = child.wait().unwrap();
        if status.success() {
            assert!(output.contains("1 passed"), "{} is no test: {output}", row.test);
        }
        status.success()
    }

    /// Each test passes as it is (they all run beside this one), and fails with its rule broken.
    #[test]
    fn every_mutant_is_killed() {
        // Unit tests break their rules themselves, one thread at a time.
        let rows: Vec<Row> = table().into_iter().filter(|row| !row.test.starts_with(UNIT)).collect();
        assert!(rows.len() >= 30);
        let (next, survivors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
                scope.spawn(|| {
                    while let Some(row) = rows.get(next.fetch_add(1, Ordering::SeqCst)) {
                        if survives(row) {
                            survivors.lock().unwrap().push(format!("{} ({})", row.name, row.test));
                        }
                    }
                });
            }
        });
        let survivors = survivors.into_inner().unwrap();
        assert!(survivors.is_empty(), "nobody noticed: {survivors:#?}");
    }
}
