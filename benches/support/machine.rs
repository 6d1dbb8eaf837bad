//! What benchmarks need to know of the machine, and where their reports go.

#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::time::Duration;

/// CPU time of this process so far, all threads, ended ones too.
pub fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local of the right type, which the call fills in and keeps no hold of.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    u64::try_from(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)).as_nanos())
        .unwrap_or(u64::MAX)
}

/// Median, least and most.
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

pub fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len() - 1;
    Spread { median: sorted[last / 2], least: sorted[0], most: sorted[last] }
}

/// The value below which `share` of them lie.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}

/// The machine and the build.
pub fn describe() -> serde_json::Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    serde_json::json!({
        "cpu": model.unwrap_or("unknown"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_average": read("/proc/loadavg").split(' ').next(),
        "commit": flashsale::telemetry::REVISION,
    })
}

/// Writes a report beside the others.
pub fn write_report(name: &str, report: &serde_json::Value) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("load-tests/results").join(name);
    let text = serde_json::to_string_pretty(report).expect("plain values");
    std::fs::write(&path, text + "\n").expect("the folder is part of the repository");
    println!("\nwritten: load-tests/results/{name}");
}

/// CPU time of another process so far, in microseconds: the kernel counts in hundredths of a second.
pub fn cpu_us_of(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10_000
}

/// Whose process listens on a port of this machine, if we may see that.
pub fn listener_on(port: u16) -> Option<u32> {
    const LISTENS: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inode_of = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&format!(":{port:04X}")) && *fields.get(3)? == LISTENS;
        is_it.then(|| format!("socket:[{}]", fields[9]))
    };
    let inode = tables.iter().flat_map(|table| table.lines()).find_map(inode_of)?;
    let pids = std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|pid: &u32| {
        let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).any(|to| to.to_string_lossy() == inode)
    })
}
