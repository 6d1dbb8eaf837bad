//! CPU time of other processes, from `/proc`: what a reservation costs each of them transfers to other machines, a rate does not.

use std::collections::{HashMap, HashSet};

/// Processes with all their children, under a name: Postgres is a process per connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// For people.
    pub name: String,
    /// The first of them.
    pub pid: u32,
}

/// CPU time in user and kernel mode, in microseconds, by name; 0 for one that is not there.
pub(super) fn cpu_us(watched: &[Watched]) -> Vec<u64> {
    let processes = processes();
    watched.iter().map(|watched| of_tree(watched.pid, &processes) * US_PER_TICK).collect()
}

/// Linux tells hundredths of a second.
const US_PER_TICK: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    parent: u32,
    /// Its own, and of children that have ended.
    ticks: u64,
}

fn processes() -> HashMap<u32, Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// One line of `/proc/PID/stat`, proc(5): the name stands in parentheses and may hold anything.
fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Process {
        parent: u32::try_from(number(1)?).ok()?,
        ticks: number(11)? + number(12)? + number(13)? + number(14)?,
    })
}

fn of_tree(root: u32, processes: &HashMap<u32, Process>) -> u64 {
    let mut tree = HashSet::from([root]);
    loop {
        let children = processes.iter().filter(|(pid, process)| tree.contains(&process.parent) && !tree.contains(*pid));
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        if children.is_empty() {
            break;
        }
        tree.extend(children);
    }
    tree.iter().filter_map(|pid| processes.get(pid)).map(|process| process.ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_whatever_the_process_is_called() {
        let stat = "7 (a b) c) S 3 7 7 0 -1 4194560 1 2 3 4 50 6 7 8 20 0 1 0 9";
        assert_eq!(parse(stat), Some(Process { parent: 3, ticks: 50 + 6 + 7 + 8 }));
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn a_tree_is_added_up() {
        let process = |parent, ticks| Process { parent, ticks };
        let processes = HashMap::from([
            (1, process(0, 1000)),
            (2, process(1, 10)),
            (3, process(2, 5)),
            (4, process(3, 2)),
            (5, process(1, 7)),
        ]);
        assert_eq!([2, 5, 9].map(|root| of_tree(root, &processes)), [17, 7, 0]);
    }

    #[test]
    fn this_process_uses_time() {
        let me = [Watched { name: "me".into(), pid: std::process::id() }];
        let before = cpu_us(&me)[0];
        while cpu_us(&me)[0] == before {
            std::hint::spin_loop();
        }
    }
}
