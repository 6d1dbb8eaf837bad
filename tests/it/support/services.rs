//! Servers of a test's own, for tests that stop, kill or freeze them: `scripts/services.sh` with a folder under `target`.

use std::path::PathBuf;
use std::process::Command;

use super::kafka::fresh_name;

/// Private servers; stopped and removed when dropped.
pub struct Services {
    folder: PathBuf,
}

impl Services {
    /// Starts servers (`postgres`, `redis`, `kafka`) on free ports and waits until they are ready. A server that was stopped comes back on
    /// the same port by [`Services::run`] `start`.
    pub async fn start(names: &[&str]) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(fresh_name("services"));
        let services = Self { folder };
        services.run("start", names).await;
        services
    }

    /// `start`, `stop`, `kill`, `pause` or `resume` some of them.
    pub async fn run(&self, verb: &'static str, names: &[&str]) {
        let mut command = self.command(verb);
        command.args(names);
        let done = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = done.expect("the script runs");
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// An address, by the name of its variable: `DATABASE_URL`, `REDIS_URL`, `KAFKA_BROKERS`.
    ///
    /// # Panics
    /// If that server is not among these.
    pub fn address(&self, variable: &str) -> String {
        self.find_address(variable).unwrap_or_else(|| panic!("{variable} is none of these servers"))
    }

    /// The same; `None` = that server is not among these.
    pub fn find_address(&self, variable: &str) -> Option<String> {
        let written = std::fs::read_to_string(self.folder.join("env")).expect("the script writes it");
        let start = format!("export {variable}=");
        written.lines().find_map(|line| line.strip_prefix(&start)).map(str::to_owned)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services.sh"));
        command.arg(verb).arg(&self.folder).env("FLASHSALE_KAFKA_FAST", "1").env("KAFKA_HEAP", "256m");
        command
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        let cleaned = self.command("clean").output();
        if !std::thread::panicking() {
            assert!(cleaned.is_ok_and(|output| output.status.success()), "the private servers end");
            std::fs::remove_dir_all(&self.folder).expect("the folder is ours");
        }
    }
}
