//! Each setting, its bounds, and all problems at once.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// Flags only: tests must not depend on the environment that they run in, so every setting is given.
fn check(flags: &[&str], needs: &[Needs]) -> Result<Config, Vec<String>> {
    let unset = ["--database-url=", "--redis-url=", "--kafka-brokers=", "--admin-token="];
    let set = ["--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--topic=t", "--group=g", "--redis-prefix=p:"];
    let rest = ["--batch-size-max=250", "--log-format=json", "--events-topic=e"];
    let ingress = [
        "--ingress-adaptive=on",
        "--ingress-level-min=1",
        "--ingress-level-max=10",
        "--ingress-linger-ms=2",
        "--ingress-commands-max=4096",
        "--ingress-bytes-max=1048576",
        "--ingress-compression=none",
        "--ingress-calibration-file=",
    ];
    let is_given = |flag: &&str| flags.iter().any(|f| f.split('=').next() == flag.split('=').next());
    let others = unset.iter().chain(&set).chain(&rest).chain(&ingress).filter(|f| !is_given(f));
    let line = Line::try_parse_from(["flashsale"].iter().chain(flags).chain(others)).expect("flags are legal");
    Config::check(&line.options, needs).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

const ALL: &[Needs] = &[Needs::Database, Needs::Redis, Needs::Kafka];

#[test]
fn every_problem_is_told_at_once() {
    let wrong = [
        "--redis-url=http://x",
        "--kafka-brokers=a,b:0",
        "--http-addr=localhost",
        "--admin-addr=0.0.0.0:9090",
        "--topic=a b",
        "--events-topic=/",
        "--group=",
        "--batch-size-max=0",
        "--ingress-adaptive=perhaps",
        "--ingress-level-min=0",
        "--ingress-level-max=11",
        "--ingress-linger-ms=51",
        "--ingress-commands-max=4097",
        "--ingress-bytes-max=16383",
        "--ingress-compression=zstd",
        "--log-format=xml",
    ];
    insta::assert_snapshot!(check(&wrong, ALL).expect_err("nothing is right").join("\n"));
}

#[test]
fn what_a_subcommand_does_not_need_may_be_missing_but_not_wrong() {
    assert!(check(&[], &[]).is_ok());
    assert_eq!(check(&["--database-url=nonsense"], &[]).expect_err("wrong").len(), 1);
    assert_eq!(check(&[], ALL).expect_err("missing").len(), 3);
}

#[test]
fn a_listener_that_others_can_reach_needs_a_token() {
    for (flags, is_good) in [
        (&["--admin-addr=127.0.0.1:9090"][..], true),
        (&["--admin-addr=[::1]:9090"], true),
        (&["--admin-addr=0.0.0.0:9090"], false),
        (&["--admin-addr=[::]:9090"], false),
        (&["--admin-addr=0.0.0.0:9090", "--admin-token=t0ken"], true),
        (&["--admin-token=with blank"], false),
    ] {
        assert_eq!(check(flags, &[]).is_ok(), is_good, "{flags:?}");
    }
}

#[test]
fn batch_sizes_are_bounded() {
    for (size, is_good) in [("1", true), ("4096", true), ("0", false), ("4097", false), ("-1", false), ("x", false)] {
        assert_eq!(check(&[&format!("--batch-size-max={size}")], &[]).is_ok(), is_good, "{size}");
    }
}

#[test]
fn secrets_are_never_shown() {
    let flags = [
        "--database-url=postgres://u:canary1@db:5432/x?password=canary2&sslmode=disable",
        "--redis-url=redis://:canary3@cache:6379/0",
        "--kafka-brokers=k:9092",
        "--admin-token=canary4",
    ];
    let config = check(&flags, ALL).expect("all is right");
    let shown = [format!("{config:?} {config:#?}"), Value::Object(config.redacted()).to_string()].join("\n");
    assert!(!shown.contains("canary"), "{shown}");
    assert!(config.database().contains("canary1") && config.redis().contains("canary3"));
    assert!(config.admin_token.as_ref().expect("given").matches(b"canary4"));
    insta::assert_snapshot!(serde_json::to_string_pretty(&config.redacted()).expect("plain values"));
    // Nor in what is told about mistakes.
    let wrong = ["--database-url=postgres://u:canary5@db:port/x", "--redis-url=x:canary6@", "--admin-token=canary 7"];
    let told = check(&wrong, ALL).expect_err("all is wrong").join("\n");
    assert!(!told.contains("canary"), "{told}");
}

#[test]
fn ingress_is_governed_by_levels_or_by_one_setting() {
    use crate::ingress::levels::{Policy, Pressure, Setting};
    let policy = |flags: &[&str]| check(flags, &[]).map(|config| config.ingress.policy);
    assert_eq!(policy(&[]), Ok(Policy::default()));
    let bounded =
        policy(&["--ingress-level-min=3", "--ingress-level-max=3", "--ingress-commands-max=9"]).expect("good");
    assert!(matches!(bounded.pressure, Pressure::Levels { min: 3, max: 3, .. }) && bounded.commands_max == 9);
    let fixed =
        policy(&["--ingress-adaptive=off", "--ingress-linger-ms=0.5", "--ingress-commands-max=50"]).expect("good");
    let setting = Setting { linger: std::time::Duration::from_micros(500), commands_max: 50, in_flight_max: 1 };
    assert_eq!(fixed.pressure, Pressure::Fixed(setting));
    let crossed = policy(&["--ingress-level-min=4", "--ingress-level-max=3"]).expect_err("no level is left");
    assert_eq!(crossed, ["INGRESS_LEVEL_MIN (--ingress-level-min): must not be above INGRESS_LEVEL_MAX"]);
    for not_a_number in ["--ingress-linger-ms=NaN", "--ingress-linger-ms=-1", "--ingress-linger-ms=inf"] {
        assert_eq!(policy(&[not_a_number]).expect_err("not a time").len(), 1, "{not_a_number}");
    }
}
