//! House rules that a machine can check (`docs/style.md` says why each exists). The rules read the sources as text.
//!
//! Each rule is a function from a source to its offences, and has a case that shows it catching one and letting a good neighbour pass.

mod migrations;
mod source;

use source::{Source, sources_in};

/// `path:line: what is wrong`.
type Offences = Vec<String>;

// ---- purity -------------------------------------------------------------------------------------------------------------------

/// Decisions, bytes and ids depend on their arguments alone: no I/O, no clock, no randomness, no order of a hash map, nothing async.
fn pure_code_stays_pure(source: &Source) -> Offences {
    let is_inventory = source.path.starts_with("inventory");
    if !is_inventory && !["ids.rs", "limits.rs", "wire.rs"].contains(&&*source.path) {
        return Offences::new();
    }
    let forbidden = [
        "tokio",
        "sqlx",
        "redis",
        "rdkafka",
        "axum",
        "tracing",
        "metrics",
        "rand",
        "async",
        "await",
        "SystemTime",
        "Instant",
        "HashMap",
        "HashSet",
        "SystemClock",
        "now_utc",
        "spawn",
        "println",
        "eprintln",
        "std::fs",
        "std::net",
        "std::io",
        "std::env",
        "std::thread",
        "std::process",
        "std::sync::mpsc",
        "std::sync::Mutex",
    ];
    let mut offences = found_words(source, &forbidden, "has no place in pure code");
    // Fresh ids are made in ids.rs, at the edge; bounds are durations.
    if source.path != "ids.rs" {
        offences.extend(found_words(source, &["new_v4", "now_v7", "fresh_id", "fresh_token"], "is randomness"));
    }
    if source.path != "limits.rs" {
        offences.extend(found_words(source, &["std::time", "Duration"], "is time that does not come from the log"));
    }
    for at in source.words("crate::") {
        let module: String = source.bare[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !["clock", "ids", "inventory", "limits"].contains(&&*module) {
            offences.push(format!("{}: pure code does not use crate::{module}", source.line_at(at)));
        }
    }
    offences
}

#[test]
fn tidy_pure_code_stays_pure() {
    enforce(pure_code_stays_pure);
    catches(pure_code_stays_pure, "inventory/decide.rs", "use std::collections::HashMap;");
    catches(pure_code_stays_pure, "inventory/decide.rs", "async fn f() {}");
    catches(pure_code_stays_pure, "inventory.rs", "use crate::store::Store;");
    catches(pure_code_stays_pure, "inventory.rs", "use crate::{ids, store};");
    catches(pure_code_stays_pure, "wire.rs", "let now = std::time::SystemTime::now();");
    catches(pure_code_stays_pure, "wire.rs", "let id = Uuid::new_v4();");
    catches(pure_code_stays_pure, "ids.rs", "tracing::info!(\"made an id\");");
    allows(
        pure_code_stays_pure,
        "inventory/decide.rs",
        "use crate::ids::SkuId; // unlike a HashMap\nlet a = \"tokio\";",
    );
    allows(pure_code_stays_pure, "store.rs", "use std::collections::HashMap;");
}

// ---- bounds -------------------------------------------------------------------------------------------------------------------

/// A queue, a wait or a number of things at once is named in `limits.rs`, or comes in as a value that was named there.
fn bounds_are_named(source: &Source) -> Offences {
    if is_home_of_bounds(source) {
        return Offences::new();
    }
    let mut offences = found_words(source, &["unbounded_channel", "UnboundedSender"], "is a queue without a bound");
    let calls = [
        "channel",
        "sync_channel",
        "Semaphore::new",
        "timeout",
        "timeout_at",
        "recv_timeout",
        "wait_timeout",
        "sleep",
        "sleep_until",
        "interval",
        "interval_at",
        "buffered",
        "buffer_unordered",
        "for_each_concurrent",
        "max_connections",
        "acquire_timeout",
        "concurrency_limit",
        "ConcurrencyLimitLayer::new",
        "TimeoutLayer::new",
        "TimeoutLayer::with_status_code",
        "RequestBodyLimitLayer::new",
        "DefaultBodyLimit::max",
    ];
    for call in calls {
        for at in source.words(call) {
            let is_call =
                source.bare[at + call.len()..].starts_with('(') || source.bare[at + call.len()..].starts_with("::<");
            let before = &source.bare[..at];
            // One answer, one newest value: these two hold no queue. And a field may be named after a pub/sub channel.
            let is_other_channel =
                call == "channel" && ["oneshot::", "watch::", "."].iter().any(|b| before.ends_with(b));
            let is_exempt = is_other_channel || before.ends_with("fn ");
            if is_call && !is_exempt && !is_named_bound(source, at, call) {
                offences.push(format!("{}: the bound of `{call}` has no name in limits.rs", source.line_at(at)));
            }
        }
    }
    offences
}

/// No digits, and something at all: a name of `limits`, or a variable or field that carries one.
fn is_named_bound(source: &Source, at: usize, call: &str) -> bool {
    let arguments = source.split_arguments(source.arguments_after(at));
    // `wait_timeout` takes a lock first, `interval_at` a start, the layer a status; everything else its bound.
    let is_second = ["interval_at", "wait_timeout", "TimeoutLayer::with_status_code"].contains(&call);
    let (from, to) = arguments[usize::from(is_second).min(arguments.len() - 1)];
    let bound = source.bare[from..to].trim();
    !bound.is_empty() && (bound.contains("limits::") || !has_number(bound))
}

/// A number that is not part of an identifier.
fn has_number(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.split(|c| !is_part(c)).any(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

#[test]
fn tidy_bounds_are_named() {
    enforce(bounds_are_named);
    catches(bounds_are_named, "a.rs", "let (a, b) = mpsc::channel(64);");
    catches(bounds_are_named, "a.rs", "let (a, b) = tokio::sync::mpsc::channel::<u8>(64);");
    catches(bounds_are_named, "a.rs", "let (a, b) = std::sync::mpsc::channel();");
    catches(bounds_are_named, "a.rs", "let (a, b) = mpsc::unbounded_channel();");
    catches(bounds_are_named, "a.rs", "use tokio::sync::mpsc::channel;\nlet (a, b) = channel(64);");
    catches(bounds_are_named, "a.rs", "Semaphore::new(4)");
    catches(bounds_are_named, "a.rs", "timeout(Duration::from_secs(2), ask()).await");
    catches(bounds_are_named, "a.rs", "sleep(Duration::from_millis(10)).await");
    catches(bounds_are_named, "a.rs", "interval_at(start, Duration::from_millis(10))");
    catches(bounds_are_named, "a.rs", "PgPoolOptions::new().max_connections(8)");
    catches(bounds_are_named, "a.rs", "stream.buffered(8)");
    allows(bounds_are_named, "a.rs", "mpsc::channel(limits::LANE_QUEUE_MAX)");
    allows(bounds_are_named, "a.rs", "timeout(deadline, ask(7)).await; sleep(limits::RECLAIM_WAIT * 2).await");
    allows(bounds_are_named, "a.rs", "sleep(self.wait.min(limits::RECONNECT_WAIT_MAX)).await");
    allows(bounds_are_named, "a.rs", "let (a, b) = oneshot::channel();");
    allows(bounds_are_named, "a.rs", "#[cfg(test)]\nmod tests {\n    fn f() { sleep(Duration::from_secs(1)); }\n}");
}

/// A length of time is written down once, in `limits.rs`.
fn durations_are_named(source: &Source) -> Offences {
    if is_home_of_bounds(source) {
        return Offences::new();
    }
    let makers = ["from_secs", "from_millis", "from_micros", "from_nanos", "from_mins", "from_secs_f64", "new"];
    let mut offences = Offences::new();
    for maker in makers {
        for at in source.words(&format!("Duration::{maker}")) {
            let (from, to) = source.arguments_after(at);
            if has_number(&source.bare[from..to]) {
                offences.push(format!("{}: a length of time has no name in limits.rs", source.line_at(at)));
            }
        }
    }
    offences
}

#[test]
fn tidy_durations_are_named() {
    enforce(durations_are_named);
    catches(durations_are_named, "a.rs", "const EVERY: Duration = Duration::from_millis(5);");
    catches(durations_are_named, "a.rs", "let d = time::Duration::new(1, 0);");
    allows(durations_are_named, "a.rs", "let d = Duration::from_secs(settings.hold_seconds);");
    allows(durations_are_named, "limits.rs", "pub const A: Duration = Duration::from_secs(2);");
}

/// `limits.rs` names the bounds; `config.rs` and `cli.rs` take the ones that an operator may change.
fn is_home_of_bounds(source: &Source) -> bool {
    ["limits.rs", "limits/hints.rs", "config.rs", "cli.rs"].contains(&&*source.path)
}

// ---- failures -----------------------------------------------------------------------------------------------------------------

/// A panic in production says why it can't happen.
fn panics_carry_their_reason(source: &Source) -> Offences {
    let mut offences = found_words(source, &[".unwrap()", ".unwrap_err()", "dbg!"], "has no place outside tests");
    for at in source.words(".expect(").into_iter().chain(source.words(".expect_err(")) {
        let (from, to) = source.arguments_after(at);
        let reason = source.code[from..to].trim();
        if !reason.starts_with('"') || reason.split_whitespace().count() < 3 {
            offences.push(format!("{}: `expect({reason})` does not say why it holds", source.line_at(at)));
        }
    }
    offences
}

#[test]
fn tidy_panics_carry_their_reason() {
    enforce(panics_carry_their_reason);
    catches(panics_carry_their_reason, "a.rs", "let a = b.unwrap();");
    catches(panics_carry_their_reason, "a.rs", "let a = b.expect(\"a\");");
    catches(panics_carry_their_reason, "a.rs", "let a = b.expect(&message);");
    allows(panics_carry_their_reason, "a.rs", "let a = b.unwrap_or(0); let c = d.expect(\"checked at the door\");");
    allows(panics_carry_their_reason, "a.rs", "#[cfg(test)]\nmod tests { fn f() { a.unwrap(); } }");
    allows(panics_carry_their_reason, "a/tests.rs", "fn f() { a.unwrap(); }");
}

/// What is on the main branch is finished.
fn nothing_is_left_unfinished(source: &Source) -> Offences {
    found_words(source, &["unimplemented!", "todo!"], "is a promise, not code")
}

#[test]
fn tidy_nothing_is_left_unfinished() {
    enforce(nothing_is_left_unfinished);
    catches(nothing_is_left_unfinished, "a.rs", "fn f() { unimplemented!() }");
    catches(nothing_is_left_unfinished, "a.rs", "fn f() { todo!(\"later\") }");
    allows(nothing_is_left_unfinished, "a.rs", "// unimplemented! would be wrong here\n");
}

/// A test waits for a condition, is never left out, and never tried again.
fn tests_wait_for_conditions(source: &Source) -> Offences {
    if source.path == "support/wait.rs" {
        return Offences::new();
    }
    found_words(source, &["sleep", "#[ignore"], "hides what a test is about: see support/wait.rs")
}

#[test]
fn tidy_tests_wait_for_conditions() {
    enforce_in("tests/it", tests_wait_for_conditions);
    catches(tests_wait_for_conditions, "a.rs", "tokio::time::sleep(LONG_ENOUGH).await;");
    catches(tests_wait_for_conditions, "a.rs", "#[ignore = \"flaky\"]\nfn f() {}");
    allows(tests_wait_for_conditions, "a.rs", "wait_for(\"sleep\", DEADLINE, is_so).await;");
}

// ---- logs and SQL -------------------------------------------------------------------------------------------------------------

/// A log message is a lowercase fragment without a full stop; values are fields, never part of the text.
fn log_messages_are_fragments(source: &Source) -> Offences {
    let mut offences = Offences::new();
    for name in ["error!", "warn!", "info!", "debug!", "trace!"] {
        for at in source.words(name) {
            let arguments = source.split_arguments(source.arguments_after(at));
            let texts = arguments.iter().map(|(from, to)| source.code[*from..*to].trim());
            let message = texts.filter_map(|text| text.strip_prefix('"')?.strip_suffix('"')).next();
            let Some(message) = message else {
                offences.push(format!("{}: a log line without a message", source.line_at(at)));
                continue;
            };
            let is_fragment = message.starts_with(|c: char| c.is_lowercase()) && !message.ends_with(['.', '!', '\n']);
            if !is_fragment || message.contains('{') {
                offences
                    .push(format!("{}: {message:?} is not a lowercase fragment without values", source.line_at(at)));
            }
        }
    }
    offences
}

#[test]
fn tidy_log_messages_are_fragments() {
    enforce(log_messages_are_fragments);
    catches(log_messages_are_fragments, "a.rs", "info!(\"Committed batch\");");
    catches(log_messages_are_fragments, "a.rs", "tracing::warn!(batch.size = n, \"committed batch.\");");
    catches(log_messages_are_fragments, "a.rs", "error!(\"partition {partition} halted\");");
    catches(log_messages_are_fragments, "a.rs", "error!(%error);");
    allows(log_messages_are_fragments, "a.rs", "info!(batch.size = n, kind = \"Reserve.\", \"committed batch\");");
    allows(
        log_messages_are_fragments,
        "a.rs",
        "warn!(\n    error = %f(\"A.\", 1),\n    \"can't claim the partition\"\n);",
    );
}

/// `pg_stat_activity` names the function that asks: a statement starts with `/* name */`.
fn statements_name_their_function(source: &Source) -> Offences {
    let mut offences = Offences::new();
    for call in ["sqlx::query", "sqlx::query_as", "sqlx::query_scalar", "query_as", "query_scalar"] {
        for at in source.words(call) {
            if !source.bare[at + call.len()..].starts_with(['(', ':']) {
                continue;
            }
            let (from, to) = source.arguments_after(at);
            let statement = source.code[from..to].trim_start().trim_start_matches(['r', '#']);
            if statement.starts_with('"') && !statement[1..].trim_start().starts_with("/* ") {
                offences.push(format!("{}: the statement does not start with /* its function */", source.line_at(at)));
            }
        }
    }
    offences
}

#[test]
fn tidy_statements_name_their_function() {
    enforce(statements_name_their_function);
    catches(statements_name_their_function, "a.rs", "sqlx::query(\"SELECT 1\").execute(conn)");
    catches(statements_name_their_function, "a.rs", "sqlx::query_as::<_, (i64,)>(\n    r#\"SELECT 1\"#,\n)");
    allows(statements_name_their_function, "a.rs", "sqlx::query(\"/* load_skus */ SELECT 1\").execute(conn)");
    allows(statements_name_their_function, "a.rs", "sqlx::query(statement)");
}

/// Migrations add columns while older builds run: a prepared statement that answers with all columns fails from then on.
fn statements_name_their_columns(source: &Source) -> Offences {
    let opens = source.code.match_indices("*/").map(|(at, comment)| at + comment.len());
    let begins = opens.filter(|at| source.code[*at..].trim_start().starts_with("SELECT *"));
    let returns = source.code.match_indices("RETURNING *").map(|(at, _)| at);
    begins.chain(returns).map(|at| format!("{}: the statement does not name its columns", source.line_at(at))).collect()
}

#[test]
fn tidy_statements_name_their_columns() {
    enforce(statements_name_their_columns);
    catches(statements_name_their_columns, "a.rs", "query(\"/* load_skus */ SELECT * FROM sku\")");
    catches(statements_name_their_columns, "a.rs", "query(\n\"/* load_skus */\n SELECT * FROM sku\")");
    catches(statements_name_their_columns, "a.rs", "query(\"/* put */ INSERT INTO sku (a) VALUES (1) RETURNING *\")");
    allows(
        statements_name_their_columns,
        "a.rs",
        "query(\"/* load_skus */ SELECT count(*) FROM (SELECT * FROM sku) s\")",
    );
}

// ---- files and names ----------------------------------------------------------------------------------------------------------

/// A file opens with its purpose and tells one story.
fn files_tell_one_story(source: &Source) -> Offences {
    const LINES_MAX: usize = 600;
    let mut offences = Offences::new();
    if !source.text.starts_with("//! ") {
        offences.push(format!("{}: does not open with what it is for (`//! ...`)", source.path));
    }
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        offences.push(format!("{}: {lines} lines are more than one story (look again past 400)", source.path));
    }
    if source.path.ends_with("mod.rs") {
        offences.push(format!("{}: a module is `name.rs` beside `name/`", source.path));
    }
    offences
}

#[test]
fn tidy_files_tell_one_story() {
    enforce(files_tell_one_story);
    catches(files_tell_one_story, "a.rs", "use std::fmt;\n");
    catches(files_tell_one_story, "a.rs", &format!("//! A long story.\n{}", "// And then.\n".repeat(600)));
    catches(files_tell_one_story, "a/mod.rs", "//! A module.\n");
    allows(files_tell_one_story, "a.rs", "//! A module.\n");
}

/// One word per thing: these have another word in the glossary (README and `docs/style.md`).
fn names_come_from_the_glossary(source: &Source) -> Offences {
    // Field notes gave the metric its name.
    let is_metric = |word: &str| word.eq_ignore_ascii_case("batch_allocation_rate");
    let forbidden = [
        ("product", "SKU"),
        ("booking", "reservation"),
        ("allocation", "reservation"),
        ("stock_left", "available"),
        ("checkpoint", "position"),
        ("backlog", "lag"),
    ];
    let mut offences = Offences::new();
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    for word in source.bare.split(|c| !is_part(c)) {
        for (wrong, right) in forbidden {
            if format!("_{}_", snake_case(word)).contains(&format!("_{wrong}_")) && !is_metric(word) {
                offences.push(format!("{}: `{word}` says {wrong}, the glossary says {right}", source.line_at(at)));
            }
        }
        at += word.len() + source.bare[at + word.len()..].chars().next().map_or(0, char::len_utf8);
    }
    offences
}

fn snake_case(word: &str) -> String {
    let mut snake = String::new();
    let mut was_lower = false;
    for c in word.chars() {
        if was_lower && c.is_uppercase() {
            snake.push('_');
        }
        was_lower = c.is_lowercase() || c.is_numeric();
        snake.extend(c.to_lowercase());
    }
    snake
}

#[test]
fn tidy_names_come_from_the_glossary() {
    enforce(names_come_from_the_glossary);
    catches(names_come_from_the_glossary, "a.rs", "let product_id = 1;");
    catches(names_come_from_the_glossary, "a.rs", "struct ProductId;");
    catches(names_come_from_the_glossary, "a.rs", "struct OpenBooking;");
    catches(names_come_from_the_glossary, "a.rs", "let units = sku.stock_left();");
    allows(
        names_come_from_the_glossary,
        "a.rs",
        "let production = 1; // a product\nconst BATCH_ALLOCATION_RATE: &str = \"allocation\";",
    );
}

// ---- the boundary -------------------------------------------------------------------------------------------------------------

/// No source of the program offends.
#[track_caller]
fn enforce(rule: fn(&Source) -> Offences) {
    enforce_in("src", rule);
}

#[track_caller]
fn enforce_in(folder: &str, rule: fn(&Source) -> Offences) {
    let sources = sources_in(folder);
    assert!(sources.len() > 10, "the sources were not found");
    let offences: Offences = sources.iter().flat_map(rule).collect();
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

/// The rule sees what is planted.
#[track_caller]
fn catches(rule: fn(&Source) -> Offences, path: &str, planted: &str) {
    assert!(!rule(&Source::new(path, planted)).is_empty(), "not caught: {planted}");
}

/// The rule lets a good neighbour pass.
#[track_caller]
fn allows(rule: fn(&Source) -> Offences, path: &str, good: &str) {
    assert_eq!(rule(&Source::new(path, good)), Offences::new(), "{good}");
}

/// Every place where one of these words stands in code.
fn found_words(source: &Source, words: &[&str], why: &str) -> Offences {
    let places = words.iter().flat_map(|word| source.words(word).into_iter().map(move |at| (at, word)));
    places.map(|(at, word)| format!("{}: `{word}` {why}", source.line_at(at))).collect()
}

#[test]
fn tidy_reads_sources_without_comments_texts_and_tests() {
    let source = Source::new(
        "a.rs",
        "a(\"b // c\"); // d\n/* e */ f('\"', '\\'', b'x', r#\"g \" h\"#, &'static i);\n#[cfg(test)]\nmod tests {\n j();\n}\nk();",
    );
    let words: Vec<&str> = source.bare.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    assert_eq!(words, ["a", "f", "b", "r", "static", "i", "k"]);
    assert!(source.code.contains("b // c") && source.code.contains("g \" h") && !source.code.contains('d'));
    assert_eq!(source.line_at(source.words("k")[0]), "a.rs:7");
}

#[test]
fn tidy_style_page_names_the_rules_that_are_enforced() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("part of the repository");
    let (page, rules) = (read("docs/style.md"), read("tests/it/tidy.rs"));
    let calls = ["    enforce(", "    enforce_in(\"tests/it\", "];
    let enforced =
        |line: &'_ str| calls.iter().find_map(|call| Some(line.strip_prefix(call)?.strip_suffix(");")?.to_owned()));
    let names: Vec<String> = rules.lines().filter_map(enforced).collect();
    assert!(names.len() >= 8, "the rules were not found: {names:?}");
    for name in names {
        assert!(page.contains(&format!("`{name}`")), "docs/style.md does not mention {name}");
    }
}
