//! Migrations: numbered without gaps, and each says which builds may still run after it (`docs/style.md`, "To add a migration").

use std::path::Path;

use super::Offences;

/// How a migration says it, on a line of its own.
const DECLARES: &str = "INSERT INTO schema_floor (migration, oldest_build) VALUES (";

/// `files`: name and text, in the order of their names.
fn migrations_declare_themselves(files: &[(String, String)]) -> Offences {
    let mut offences = Offences::new();
    let mut floor = 1;
    for (number, (name, text)) in (1..).zip(files) {
        if !name.starts_with(&format!("{number:04}_")) {
            offences.push(format!("{name}: must be the file {number:04}_what_it_does.sql"));
        }
        if text.starts_with("-- no-transaction") {
            offences.push(format!("{name}: half of it could stay, and could not say which builds may run"));
        }
        let declared: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(DECLARES)).collect();
        let oldest_build = match declared[..] {
            [one] => one.strip_prefix(&format!("{number}, ")).and_then(|rest| rest.strip_suffix(");")?.parse().ok()),
            _ => None,
        };
        match oldest_build {
            Some(build) if (floor..=number).contains(&build) => floor = build,
            _ => offences.push(format!(
                "{name}: must have one line `{DECLARES}{number}, B);`, B from {floor} (as before: it only adds) to {number}"
            )),
        }
    }
    offences
}

fn of(texts: &[(&str, &str)]) -> Offences {
    let files: Vec<_> = texts.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    migrations_declare_themselves(&files)
}

#[test]
fn tidy_migrations_declare_themselves() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .expect("part of the repository")
        .map(|entry| entry.expect("readable").path())
        .map(|path| (path.file_name().expect("a file").to_string_lossy().into_owned(), path))
        .map(|(name, path)| (name, std::fs::read_to_string(path).expect("readable")))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "the migrations were not found");
    let offences = migrations_declare_themselves(&files);
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

#[test]
fn tidy_migrations_that_do_not_declare_themselves_are_seen() {
    let says = |number: u32, build: u32| format!("CREATE TABLE t ();\n{DECLARES}{number}, {build});\n");
    let first = ("0001_a.sql", &*says(1, 1));
    let adds = ("0002_b.sql", &*says(2, 1));
    let contracts = ("0003_c.sql", &*says(3, 2));
    assert_eq!(
        of(&[first, adds, contracts, ("0004_d.sql", &says(4, 2)), ("0005_e.sql", &says(5, 5))]),
        Offences::new()
    );
    for (planted, what) in [
        (("0002_b.sql", "CREATE TABLE t ();"), "nothing"),
        (("0002_b.sql", &*says(1, 1)), "another number"),
        (("0002_b.sql", &*says(2, 3)), "a build that is not there yet"),
        (("0002_b.sql", &*says(2, 0)), "no build"),
        (("0002_b.sql", &*format!("-- {}", says(2, 1).trim_start_matches("CREATE TABLE t ();\n"))), "a comment"),
        (("0002_b.sql", &*says(2, 1).repeat(2)), "twice"),
        (("0002_b.sql", &*format!("-- no-transaction\n{}", says(2, 1))), "half of it"),
        (("0003_b.sql", &*says(2, 1)), "a gap"),
    ] {
        assert_eq!(of(&[first, planted]).len(), 1, "{what}");
    }
    assert_eq!(of(&[first, adds, contracts, ("0004_d.sql", &says(4, 1))]).len(), 1, "what contracted stays contracted");
}
