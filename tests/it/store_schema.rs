//! Which tables a build works on. Migrations that this build does not have are planted as a newer one leaves them.

use flashsale::store::{Store, StoreError, migrate};
use sqlx::Executor;

use crate::support::database::Database;

async fn database() -> Database {
    Database::fresh("t", 2).await
}

/// What stays of a migration of another build: that it ran, and which builds may still run.
async fn plant(db: &Database, migration: i64, oldest_build: i64) {
    db.run(&format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES ({migration}, 'planted', true, '', 0);
         INSERT INTO schema_floor (migration, oldest_build) VALUES ({migration}, {oldest_build})"
    ))
    .await;
}

/// Every process and `flashsale migrate` refuse these tables, with one line that begins like that. Nothing was changed.
async fn assert_refused(db: &Database, line: &str) {
    let checked = db.store().check_schema().await.expect_err("not this build's tables");
    let migrated = migrate(&db.url, "another", 4).await.expect_err("not this build's tables");
    for error in [checked, migrated] {
        assert!(matches!(error, StoreError::OtherSchema { .. }), "{error:?}");
        assert!(error.to_string().starts_with(line) && !error.to_string().contains('\n'), "{error}");
    }
    assert_eq!(db.number("SELECT count(*) FROM partition_state WHERE topic = 'another'").await, 0);
}

#[tokio::test]
async fn the_schema_of_this_build_is_its_own() {
    let db = database().await;
    assert_eq!(db.store().check_schema().await.expect("freshly migrated"), Store::schema_version_of_build());
    let declared =
        "SELECT count(*) FROM _sqlx_migrations m LEFT JOIN schema_floor f ON f.migration = m.version WHERE f IS NULL";
    assert_eq!(db.number(declared).await, 0, "a migration does not say which builds may still run");
    db.drop().await;
}

#[tokio::test]
async fn a_schema_that_a_newer_build_expanded_is_worked_on() {
    let db = database().await;
    let build = Store::schema_version_of_build();
    plant(&db, build + 1, build).await;
    assert_eq!(db.store().check_schema().await.expect("expanded only"), build + 1);
    // As a rollback does that applies everything of the build before.
    migrate(&db.url, "another", 4).await.expect("nothing to do for the tables");
    assert_eq!(db.number("SELECT count(*) FROM partition_state WHERE topic = 'another'").await, 4);
    assert_eq!(db.number("SELECT max(version) FROM _sqlx_migrations").await, build + 1);
    db.drop().await;
}

#[tokio::test]
async fn a_schema_that_was_contracted_past_a_build_is_refused() {
    let db = database().await;
    let build = Store::schema_version_of_build();
    plant(&db, build + 1, build).await;
    plant(&db, build + 2, build + 1).await;
    let line = format!(
        "the database's schema is version {}, for builds of schema {} and newer, this one is of schema {build}: run a newer build",
        build + 2,
        build + 1
    );
    assert_refused(&db, &line).await;
    // What contracted stays contracted, whatever a later migration says.
    plant(&db, build + 3, 1).await;
    assert_refused(&db, &format!("the database's schema is version {}, for builds of", build + 3)).await;
    db.drop().await;
}

#[tokio::test]
async fn a_schema_that_lacks_a_migration_is_refused_until_it_is_migrated() {
    let db = database().await;
    let build = Store::schema_version_of_build();
    db.run(&format!("DELETE FROM _sqlx_migrations WHERE version = {build}")).await;
    db.run("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'newer', true, '', 0)")
        .await;
    let told = db.store().check_schema().await.expect_err("a migration is not there").to_string();
    assert_eq!(told, format!("the database has not seen migration {build}: run `flashsale migrate` of this build"));
    // Half-way is not done.
    db.run(&format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES ({build}, 'half', false, '', 0)"
    ))
    .await;
    assert_eq!(db.store().check_schema().await.expect_err("it did not end").to_string(), told);
    db.drop().await;
}

#[tokio::test]
async fn a_migration_that_was_edited_is_refused() {
    let db = database().await;
    let build = Store::schema_version_of_build();
    db.run("UPDATE _sqlx_migrations SET checksum = sha384('edited') WHERE version = 1").await;
    let edited = |migration: i64| format!("migration {migration} of the database is not the one of this build: ");
    assert_refused(&db, &edited(1)).await;
    // Under a newer schema too.
    plant(&db, build + 1, build).await;
    assert_refused(&db, &edited(1)).await;
    db.drop().await;
    // One that this build would have if it came from the same branch.
    let db = database().await;
    db.run("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (0, 'of a branch', true, '', 0)")
        .await;
    assert_refused(&db, &edited(0)).await;
    db.drop().await;
}

#[tokio::test]
async fn tables_that_are_not_made_yet_are_waited_for() {
    let db = database().await;
    for gone in ["DELETE FROM _sqlx_migrations", "DROP TABLE _sqlx_migrations"] {
        db.run(gone).await;
        let error = db.store().check_schema().await.expect_err("no tables");
        assert!(matches!(error, StoreError::NotMigrated), "{gone}: {error}");
    }
    db.drop().await;
}

/// A statement that waits for a table lock holds up everybody who comes after it: buyers, and batches, which halt a partition after a while.
#[tokio::test]
async fn a_migration_gives_way_to_those_who_use_a_table() {
    let db = database().await;
    let mut reader = db.connect().await;
    reader.execute("BEGIN; LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE").await.expect("nobody uses it");
    let error = migrate(&db.url, "t", 2).await.expect_err("the table is in use");
    assert!(format!("{error:?}").contains("55P03"), "lock_not_available: {error:?}");
    reader.execute("COMMIT").await.expect("it lets go");
    migrate(&db.url, "t", 2).await.expect("nobody is in the way");
    db.drop().await;
}

/// The text of every migration that may have run somewhere. A new one gets its line when it lands on the main branch, and keeps it for ever.
const NEVER_EDITED: &[(i64, &str)] = &[(1, "0dd19dd11c972c44"), (2, "de7a2f7d3ce4d427")];

#[tokio::test]
async fn migrations_are_never_edited() {
    let db = database().await;
    for migration in 1..=Store::schema_version_of_build() {
        let of = format!("SELECT left(encode(checksum, 'hex'), 16) FROM _sqlx_migrations WHERE version = {migration}");
        let checksum = db.text(&of).await.expect("they are numbered without gaps");
        let known = NEVER_EDITED.iter().find(|(number, _)| *number == migration).map(|(_, checksum)| *checksum);
        assert_eq!(
            known,
            Some(&*checksum),
            "a migration that ran somewhere is never edited, write another one; a new one is added as ({migration}, \"{checksum}\")"
        );
    }
    db.drop().await;
}
