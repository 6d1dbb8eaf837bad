//! End to end through the binary: what operators do when nothing is on fire. Draining, dead letters, starting before the tables are there.

use std::process::Output;

use flashsale::inventory::Command;
use serde_json::Value;

use crate::support::commands::{record, reserve};
use crate::support::kafka::publish_raw;
use crate::support::site::{Answer, SOON, Site};
use crate::support::wait::wait_for;

/// Exit status, what was printed, what was told on stderr.
fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it was not killed"), text(&output.stdout), text(&output.stderr))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A site whose SKUs are decided, and on which nothing runs.
async fn site_with_skus(skus: &[&str]) -> Site {
    let site = Site::shared().await;
    let all = site.start("all").await;
    for sku in skus {
        site.put_sku(sku, 50, 50).await;
    }
    assert!(all.stop().await.success());
    site
}

async fn partition_of(site: &Site, sku: &str) -> i32 {
    let sql = format!("SELECT partition::bigint FROM sku WHERE sku_id = '{sku}'");
    i32::try_from(site.db.number(&sql).await).expect("a partition")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_decides_what_is_in_the_log_and_ends() {
    let site = site_with_skus(&["a", "b"]).await;
    for name in ["a", "b"] {
        let waiting: Vec<Vec<u8>> = (0..40).map(|n| record(&[reserve(name, &format!("u-{n}"), 1)])).collect();
        let payloads: Vec<&[u8]> = waiting.iter().map(Vec::as_slice).collect();
        publish_raw(&site.db.topic, partition_of(&site, name).await, name, &payloads);
    }
    let (exit, printed, told) = ended(&site.run(&["drain"]).await);
    assert_eq!(exit, 0, "{told}");
    assert_eq!(printed.lines().count(), 1 + 10, "a line for each partition: {printed}");
    assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 80);

    // The second finds nothing to do, claims nothing, and says the same.
    let epochs = site.db.number("SELECT sum(epoch)::bigint FROM partition_state").await;
    let again = site.run(&["drain", "--json"]).await;
    assert_eq!(ended(&again).0, 0, "{again:?}");
    assert!(json(&again).as_array().expect("partitions").iter().all(|p| p["state"] == "decided"), "{again:?}");
    assert_eq!(site.db.number("SELECT sum(epoch)::bigint FROM partition_state").await, epochs);
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_what_others_decide_and_leaves_them_alone() {
    let site = site_with_skus(&["a"]).await;
    let consumer = site.start("consumer").await;
    let waiting = record(&[reserve("a", "u-1", 1), reserve("a", "u-2", 1)]);
    publish_raw(&site.db.topic, partition_of(&site, "a").await, "a", &[&waiting]);
    assert_eq!(ended(&site.run(&["drain"]).await).0, 0);
    assert_eq!(site.db.number("SELECT count(*) FROM reservation").await, 2);
    site.finish([consumer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_decides_all_but_what_is_halted_and_says_so() {
    let site = site_with_skus(&["a", "b"]).await;
    site.db.run("ALTER TABLE reservation ADD CONSTRAINT planted_check CHECK (user_id <> 'bad')").await;
    for (name, user) in [("a", "bad"), ("b", "good")] {
        let waiting = record(&[reserve(name, user, 1)]);
        publish_raw(&site.db.topic, partition_of(&site, name).await, name, &[&waiting]);
    }
    let halted = partition_of(&site, "a").await;
    for _ in 0..2 {
        let output = site.run(&["drain", "--json"]).await;
        let (exit, _, told) = ended(&output);
        assert_eq!(exit, 1, "{told}");
        assert!(
            told.lines().any(|line| line.starts_with(&format!("flashsale: partition {halted} is halted: "))),
            "{told}"
        );
        let states = json(&output);
        let state = |p: &Value| (p["state"] == "halted") == (p["partition"] == halted);
        assert!(states.as_array().expect("partitions").iter().all(state), "{states}");
        assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE user_id = 'good'").await, 1);
    }
    site.db.run("ALTER TABLE reservation DROP CONSTRAINT planted_check").await;
    let resumed = site.run(&["partition", "resume", &halted.to_string(), "--note", "dropped a planted check"]).await;
    assert_eq!(ended(&resumed).0, 0, "{resumed:?}");
    assert_eq!(ended(&site.run(&["drain"]).await).0, 0);
    assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 2);
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_never_calls_a_halted_partition_decided() {
    let site = site_with_skus(&[]).await;
    // A log that was cut: it ends below what was decided, and the halt is stored.
    site.db.run("UPDATE partition_state SET position = 7, halted_reason = 'it was cut' WHERE partition = 3").await;
    // And one that has nothing more to decide.
    site.db.run("UPDATE partition_state SET halted_reason = 'changed stock' WHERE partition = 4").await;
    let output = site.run(&["drain", "--json"]).await;
    let (exit, _, told) = ended(&output);
    assert_eq!(exit, 1, "{told}");
    for (partition, reason) in [(3, "it was cut"), (4, "changed stock")] {
        let line = format!("flashsale: partition {partition} is halted: {reason}");
        assert!(told.lines().any(|told| told.starts_with(&line)), "{line} in {told}");
        assert_eq!(json(&output)[partition]["state"], "halted");
    }
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_gives_up_on_servers_that_are_away() {
    let site = Site::shared().await;
    for away in [["--kafka-brokers", "127.0.0.1:1"], ["--database-url", "postgres://nobody@127.0.0.1:1/none"]] {
        let (exit, printed, told) = ended(&site.run(&[&["drain", "--within", "1"][..], &away].concat()).await);
        assert_eq!((exit, printed.as_str()), (69, ""), "{told}");
        assert!(told.contains("flashsale: gave up after 1 s without progress: "), "{told}");
    }
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_waits_for_the_tables_and_begins_by_itself() {
    let site = Site::shared().await;
    site.db
        .run(
            "DO $$ DECLARE mine text := current_schema(); BEGIN
               EXECUTE format('DROP SCHEMA %I CASCADE', mine); EXECUTE format('CREATE SCHEMA %I', mine); END $$",
        )
        .await;
    let mut processes = Vec::new();
    for role in [&["api"][..], &["consumer"], &["relay"], &["audit", "--watch"]] {
        let mut process = site.spawn(role);
        process.admin = process.wait_for_address("admin.addr").await;
        let waits = |line: &Value| line["message"] == "waiting for `flashsale migrate`" && line["level"] == "WARN";
        wait_for("it says what it waits for", SOON, async || process.lines().iter().any(waits)).await;
        assert!(!site.is_ready(&process).await, "{role:?}");
        processes.push(process);
    }
    assert!(site.run(&["migrate"]).await.status.success());
    for process in &processes {
        wait_for("it is ready", SOON, async || site.is_ready(process).await).await;
    }
    site.put_sku("a", 1, 1).await;
    // Half of the tables, as between two migrations, or before the one of this build.
    site.db.run("DROP TABLE ingress_calibration; DELETE FROM _sqlx_migrations WHERE version = 2; DELETE FROM schema_floor WHERE migration = 2").await;
    let mut early = site.spawn(&["audit", "--watch"]);
    early.admin = early.wait_for_address("admin.addr").await;
    let waits =
        |line: &Value| line["error"] == "the database has not seen migration 2: run `flashsale migrate` of this build";
    wait_for("it says what is not there", SOON, async || early.lines().iter().any(waits)).await;
    assert!(!site.is_ready(&early).await);
    assert!(site.run(&["migrate"]).await.status.success());
    wait_for("it is ready", SOON, async || site.is_ready(&early).await).await;
    processes.push(early);
    // A newer build's tables: this one starts while they are only expanded, and no more when they are contracted.
    let newer = |migration| {
        format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES ({migration}, 'newer', true, '', 0)"
        )
    };
    site.db.run(&newer(9998)).await;
    site.db.run("INSERT INTO schema_floor (migration, oldest_build) VALUES (9998, 1)").await;
    let output = site.run(&["drain"]).await;
    assert_eq!(ended(&output).0, 0, "{output:?}");
    site.db.run(&newer(9999)).await;
    site.db.run("INSERT INTO schema_floor (migration, oldest_build) VALUES (9999, 9998)").await;
    for role in [&["api"][..], &["consumer"], &["relay"], &["audit", "--watch"], &["drain"]] {
        let (exit, _, told) = ended(&site.run(role).await);
        let said = "the database's schema is version 9999, for builds of schema 9998 and newer";
        assert!(
            exit == 69 && told.lines().any(|line| line.starts_with("flashsale: ") && line.contains(said)),
            "{role:?}: {exit} {told}"
        );
    }
    site.finish(processes).await;
}

// ---- dead letters -------------------------------------------------------------------------------------------------------------

/// A record of one command, of which the byte at the first of many `x` is not legal.
fn damaged(command: Command) -> Vec<u8> {
    let mut bytes = record(&[command]);
    let at = bytes.windows(64).position(|window| window == [b'x'; 64]).expect("a long text");
    bytes[at] = b'/';
    bytes
}

async fn drain(site: &Site) {
    let drained = site.run(&["drain"]).await;
    assert_eq!(ended(&drained).0, 0, "{drained:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_rejected_is_shown_and_dropped_and_never_replayed() {
    let site = site_with_skus(&["a"]).await;
    let home = partition_of(&site, "a").await;
    let start = site.db.number(&format!("SELECT position FROM partition_state WHERE partition = {home}")).await;
    let (long, elsewhere) = (reserve("a", &"x".repeat(64), 1), reserve("nowhere", "u-1", 1));
    let unknown = record(std::slice::from_ref(&elsewhere));
    publish_raw(&site.db.topic, home, "a", &[b"nonsense", &damaged(long.clone()), &unknown]);
    drain(&site).await;
    let place = |n: i64| format!("{home}.{}.0", start + n);

    let listed = site.run(&["dlq", "list", "--json"]).await;
    assert_eq!(ended(&listed).0, 1, "nobody has dealt with them");
    let reasons: Vec<Value> =
        json(&listed)["items"].as_array().expect("items").iter().map(|i| i["reason"].clone()).collect();
    assert_eq!(reasons, ["MALFORMED", "MALFORMED", "NOT_HERE"]);
    let page = json(&site.run(&["dlq", "list", "--json", "--limit", "2"]).await);
    assert_eq!(page["next_cursor"], place(1), "{page}");
    let rest = json(&site.run(&["dlq", "list", "--json", "--limit", "2", "--cursor", &place(1)]).await);
    assert_eq!((&rest["items"][0]["place"], rest.get("next_cursor")), (&place(2).into(), None));
    let some =
        json(&site.run(&["dlq", "list", "--json", "--partition", &home.to_string(), "--reason", "NOT_HERE"]).await);
    assert_eq!(some["items"].as_array().map(Vec::len), Some(1), "{some}");

    let shown = json(&site.run(&["dlq", "show", &place(0), "--json"]).await);
    assert_eq!(shown["payload_hex"], "6e6f6e73656e7365", "{shown}");
    let shown = json(&site.run(&["dlq", "show", &place(1), "--json"]).await);
    assert_eq!(
        (&shown["command"]["unfit"], &shown["id"]),
        (&"MALFORMED".into(), &long.id().to_string().into()),
        "{shown}"
    );
    let shown = json(&site.run(&["dlq", "show", place(2).strip_suffix(".0").expect("index 0"), "--json"]).await);
    assert_eq!(
        (&shown["command"]["kind"], &shown["command"]["user_id"]),
        (&"reserve".into(), &"u-1".into()),
        "{shown}"
    );
    assert!(ended(&site.run(&["dlq", "show", &place(1)]).await).1.contains("payload_hex: 4653"), "text has it too");
    assert_eq!(ended(&site.run(&["dlq", "show", "0.999999"]).await).0, 1);

    let position = format!("SELECT position FROM partition_state WHERE partition = {home}");
    let before = site.db.number(&position).await;
    for (n, why) in
        [(0, "no magic number"), (1, "this build can't read it either"), (2, "was answered REJECTED (UNKNOWN_SKU)")]
    {
        let (exit, _, told) = ended(&site.run(&["dlq", "replay", &place(n)]).await);
        assert!(exit == 1 && told.contains(why), "{exit} {told}");
        assert_eq!(ended(&site.run(&["dlq", "drop", &place(n)]).await).0, 64, "without a note");
        for _ in 0..2 {
            let dropped = site.run(&["dlq", "drop", &place(n), "--note", "looked at it"]).await;
            assert_eq!(ended(&dropped).0, 0, "{dropped:?}");
        }
        let (exit, _, told) = ended(&site.run(&["dlq", "replay", &place(n)]).await);
        assert!(exit == 1 && told.contains("was dropped at"), "{exit} {told}");
    }
    drain(&site).await;
    assert_eq!(site.db.number(&position).await, before, "nothing was published");
    let listed = site.run(&["dlq", "list"]).await;
    assert_eq!(ended(&listed).0, 0, "{listed:?}");
    let (exit, printed, _) = ended(&site.run(&["dlq", "list", "--all"]).await);
    assert_eq!((exit, printed.matches("looked at it").count()), (0, 3), "{printed}");
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_could_not_be_stored_is_replayed_once() {
    let site = Site::shared().await;
    let all = site.start("all").await;
    site.put_sku("a", 5, 5).await;
    let held = site.post(&all, "u-1", "a", None, Some(10)).await;
    let path = format!("/v1/reservations/{}", held.text("id"));
    // A value that Postgres refuses (class 22), for as long as it is planted.
    site.db
        .run(
            "CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW.payment_ref = 'pay-9' THEN RAISE EXCEPTION 'planted' USING ERRCODE = '22023'; END IF; RETURN NEW; END $$;
             CREATE TRIGGER planted BEFORE UPDATE ON reservation FOR EACH ROW EXECUTE FUNCTION planted()",
        )
        .await;
    let pay = async || {
        let request = site
            .client
            .post(format!("{}{path}/confirm", all.public))
            .json(&serde_json::json!({"payment_ref": "pay-9"}));
        Answer::of(request.send().await.expect("the API answers")).await
    };
    assert_eq!(pay().await.status, 500);
    assert_eq!(site.get(&all, &path).await.text("status"), "RESERVED");
    let listed = json(&site.run(&["dlq", "list", "--json"]).await);
    let place = listed["items"][0]["place"].as_str().expect("one").to_owned();
    assert_eq!(listed["items"][0]["reason"], "PROCESSING_ERROR", "{listed}");
    let shown = json(&site.run(&["dlq", "show", &place, "--json"]).await);
    assert_eq!(shown["command"]["payment_ref"], "pay-9", "{shown}");

    // While the cause remains, it is poison again, in its new place.
    let again = site.run(&["dlq", "replay", &place, "--json"]).await;
    assert_eq!(ended(&again).0, 1, "{again:?}");
    let again = json(&again);
    assert_eq!(again["decision"], "PROCESSING_ERROR", "{again}");
    let listed = json(&site.run(&["dlq", "list", "--json"]).await);
    assert_eq!(
        (listed["items"].as_array().map(Vec::len), &listed["items"][0]["place"]),
        (Some(1), &again["replayed_to"])
    );
    let place = again["replayed_to"].as_str().expect("a ticket").to_owned();

    site.db.run("DROP TRIGGER planted ON reservation").await;
    let replayed = json(&site.run(&["dlq", "replay", &place, "--note", "the trigger is gone", "--json"]).await);
    assert_eq!(replayed["decision"], "CONFIRMED", "{replayed}");
    assert_eq!(site.get(&all, &path).await.text("status"), "CONFIRMED");
    let count = "SELECT sum(position)::bigint FROM partition_state";
    let before = site.db.number(count).await;
    let second = json(&site.run(&["dlq", "replay", &place, "--json"]).await);
    assert_eq!((&second["replayed_to"], &second["decision"]), (&replayed["replayed_to"], &"CONFIRMED".into()));
    assert_eq!((&replayed["is_repeat"], &second["is_repeat"]), (&false.into(), &true.into()));
    drain(&site).await;
    assert_eq!(site.db.number(count).await, before, "nothing was published");
    assert_eq!(ended(&site.run(&["dlq", "drop", &place, "--note", "late"]).await).0, 1, "it was replayed");
    // A run that ended before it could mark publishes again: nothing is carried out twice.
    site.db.run("UPDATE poison SET resolved_at = NULL, resolution = NULL, note = NULL, replayed_to = NULL").await;
    let third = json(&site.run(&["dlq", "replay", &place, "--json"]).await);
    assert_eq!(third["decision"], "CONFIRMED", "{third}");
    assert_eq!(site.db.number("SELECT count(*) FROM command WHERE kind = 'confirm'").await, 1);
    assert_eq!(
        (pay().await.status, site.db.number("SELECT sold FROM sku").await),
        (200, 1),
        "its buyer hears the same"
    );
    assert!(all.stop().await.success());
    site.db.assert_invariants().await;
    site.db.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_was_poisoned_without_an_id_is_replayed_if_it_can_be_read_now() {
    let site = site_with_skus(&["a"]).await;
    let (alone, first, second) = (reserve("a", "u-1", 1), reserve("a", "u-2", 1), reserve("a", "u-3", 1));
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    // As an older build left them, that could read neither.
    for (offset, bytes) in [(900, record(std::slice::from_ref(&alone))), (901, record(&[first, second]))] {
        site.db
            .run(&format!(
                "INSERT INTO poison (partition, log_offset, log_index, reason, log_time, raw)
                 VALUES (9, {offset}, 0, 'MALFORMED', now(), '\\x{}')",
                hex(bytes)
            ))
            .await;
    }
    for is_repeat in [false, true] {
        let replayed = site.run(&["dlq", "replay", "9.900", "--json"]).await;
        assert_eq!(ended(&replayed).0, 2, "nobody decides: {replayed:?}");
        let replayed = json(&replayed);
        assert_eq!((&replayed["decision"], &replayed["is_repeat"]), (&Value::Null, &is_repeat.into()), "{replayed}");
    }
    drain(&site).await;
    let replayed = json(&site.run(&["dlq", "replay", "9.900", "--json"]).await);
    assert_eq!(replayed["decision"], "RESERVED", "{replayed}");
    let id = alone.id();
    assert_eq!(
        site.db.number(&format!("SELECT count(*) FROM reservation WHERE status = 1 AND reservation_id = '{id}'")).await,
        1
    );
    let (exit, _, told) = ended(&site.run(&["dlq", "replay", "9.901"]).await);
    assert!(exit == 1 && told.contains("it may stand for any of them"), "{exit} {told}");
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_that_comes_between_the_publish_and_the_mark_is_told() {
    let site = site_with_skus(&["a"]).await;
    let command = record(&[reserve("a", "u-1", 1)]);
    let hex: String = command.iter().map(|byte| format!("{byte:02x}")).collect();
    site.db
        .run(&format!(
            "INSERT INTO poison (partition, log_offset, log_index, reason, log_time, raw) VALUES (9, 900, 0, 'MALFORMED', now(), '\\x{hex}')"
        ))
        .await;
    let mut other = site.db.connect().await;
    let drop = "BEGIN; UPDATE poison SET resolved_at = now(), resolution = 'dropped', note = 'mine'";
    sqlx::raw_sql(drop).execute(&mut other).await.expect("it is marked");
    let holder: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut other).await.expect("a session has a number");
    let (replayed, ()) = tokio::join!(site.run(&["dlq", "replay", "9.900"]), async {
        // For this session: others of the server may wait as well.
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE {holder} = ANY(pg_blocking_pids(pid)) AND query LIKE '%resolve_poison%'"
        );
        wait_for("it is published, and waits to be marked", SOON, async || site.db.number(&waits).await == 1).await;
        sqlx::raw_sql("COMMIT").execute(&mut other).await.expect("it is dropped");
    });
    let (exit, _, told) = ended(&replayed);
    assert!(exit == 1 && told.contains("was published as") && told.contains("dropped at"), "{exit} {told}");
    site.finish([]).await;
}

#[tokio::test]
async fn a_partition_that_no_log_has_is_a_mistake_and_no_bug() {
    let site = Site::shared().await;
    for partition in ["40000", "70000"] {
        assert_eq!(ended(&site.run(&["partition", "resume", partition, "--note", "n"]).await).0, 64);
        assert_eq!(ended(&site.run(&["partition", "show", partition]).await).0, 64);
        assert_eq!(ended(&site.run(&["dlq", "show", &format!("{partition}.0.0")]).await).0, 64);
    }
    assert_eq!(ended(&site.run(&["partition", "resume", "1000", "--note", "n"]).await).0, 1);
    site.finish([]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_no_build_can_read_is_stepped_over_and_leaves_no_gap() {
    let site = site_with_skus(&["a"]).await;
    let home = partition_of(&site, "a").await;
    let position = format!("SELECT position FROM partition_state WHERE partition = {home}");
    let start = site.db.number(&position).await;
    let waiting = record(&[reserve("a", "u-1", 1)]);
    let newer = [b'F', b'S', 200, 1, 0, 1, b's'];
    let behind = record(&[reserve("a", "u-2", 1)]);
    publish_raw(&site.db.topic, home, "a", &[&waiting, &newer, &behind]);
    let consumer = site.start("consumer").await;
    let gives_up = |line: &Value| line["level"] == "ERROR" && line["offset"] == start + 1;
    wait_for("it gives the partition up", SOON, async || consumer.lines().iter().any(gives_up)).await;
    assert_eq!(site.db.number(&position).await, start + 1);

    let home_text = home.to_string();
    let skip = async |offset: i64| {
        let offset = offset.to_string();
        let args = ["partition", "skip", &home_text, "--offset", &offset, "--note", "a stranger's bytes"];
        ended(&site.run(&args).await)
    };
    let refusals =
        [(start, "this build decides it"), (start + 2, "this build decides it"), (start + 9, "has no record")];
    for (offset, why) in refusals {
        let (exit, _, told) = skip(offset).await;
        assert!(exit == 1 && told.contains(why), "{offset}: {exit} {told}");
    }
    assert_eq!(site.db.number(&position).await, start + 1);
    let (exit, _, told) = skip(start + 1).await;
    assert_eq!(exit, 0, "{told}");
    let (exit, _, told) = skip(start + 1).await;
    assert!(exit == 1 && told.contains("does not stand at"), "once: {exit} {told}");
    assert!(consumer.stop().await.success());

    // What follows is decided; nothing is lost, and nothing is left for the auditor.
    drain(&site).await;
    assert_eq!(site.db.number("SELECT count(*) FROM reservation WHERE status = 1").await, 2);
    let listed = json(&site.run(&["dlq", "list", "--json"]).await);
    assert_eq!(listed["items"][0]["place"], format!("{home}.{}.0", start + 1), "{listed}");
    let shown = json(&site.run(&["dlq", "show", &format!("{home}.{}", start + 1), "--json"]).await);
    assert_eq!(shown["payload_hex"], "4653c801000173", "{shown}");
    let audited = site.run(&["audit"]).await;
    assert_eq!(ended(&audited).0, 0, "{audited:?}");
    assert_eq!(site.db.number("SELECT count(*) FROM partition_resume WHERE note = 'a stranger''s bytes'").await, 1);
    site.finish([]).await;
}
