//! Counters of a pod's network interfaces.

use std::fs;

use peerpods_protos::agent::NetworkStats;

/// Reads those in the network namespace of a process; empty when it is gone.
pub(crate) fn stats(pid: i32) -> Vec<NetworkStats> {
    parse(&fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

/// `name: rx_bytes rx_packets rx_errors rx_dropped fifo frame compressed multicast tx_bytes …`, after two lines of headings.
fn parse(text: &str) -> Vec<NetworkStats> {
    text.lines()
        .skip(2)
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let numbers: Vec<u64> = rest.split_whitespace().filter_map(|number| number.parse().ok()).collect();
            let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
            let mut stats = NetworkStats::new();
            name.trim().clone_into(&mut stats.name);
            [stats.rx_bytes, stats.rx_packets, stats.rx_errors, stats.rx_dropped] = [0, 1, 2, 3].map(at);
            [stats.tx_bytes, stats.tx_packets, stats.tx_errors, stats.tx_dropped] = [8, 9, 10, 11].map(at);
            (stats.name != "lo").then_some(stats)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_in_their_columns() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
            \x20 eth0: 100 2 3 4 5 6 7 8 900 10 11 12 13 14 15 16\n";
        let stats = parse(text);
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].name.as_str(), stats[0].rx_bytes, stats[0].rx_dropped), ("eth0", 100, 4));
        assert_eq!((stats[0].tx_bytes, stats[0].tx_packets, stats[0].tx_errors, stats[0].tx_dropped), (900, 10, 11, 12));
    }
}
