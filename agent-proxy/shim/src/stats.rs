//! Statistics as containerd decodes them: `io.containerd.cgroups.v1.Metrics`, which containerd's CRI of 1.7 and of 2.x both read whatever
//! the node's own cgroups are.

use containerd_shim_protos::cgroups::metrics::{CPUStat, CPUUsage, MemoryEntry, MemoryStat, Metrics, NetworkStat, PidsStat, Throttle};
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use peerpods_protos::agent::{MemoryData, StatsContainerResponse};

const TYPE_URL: &str = "io.containerd.cgroups.v1.Metrics";

/// The agent's numbers in containerd's form.
pub fn metrics(from: &StatsContainerResponse) -> Any {
    let mut metrics = Metrics::new();
    if let Some(cgroup) = from.cgroup_stats.as_ref() {
        metrics.cpu = cgroup
            .cpu_stats
            .as_ref()
            .map(|cpu| {
                let mut to = CPUStat::new();
                to.usage = cpu
                    .cpu_usage
                    .as_ref()
                    .map(|usage| CPUUsage {
                        total: usage.total_usage,
                        kernel: usage.usage_in_kernelmode,
                        user: usage.usage_in_usermode,
                        per_cpu: usage.percpu_usage.clone(),
                        ..Default::default()
                    })
                    .into();
                to.throttling = cpu
                    .throttling_data
                    .as_ref()
                    .map(|data| Throttle {
                        periods: data.periods,
                        throttled_periods: data.throttled_periods,
                        throttled_time: data.throttled_time,
                        ..Default::default()
                    })
                    .into();
                to
            })
            .into();
        metrics.memory = cgroup
            .memory_stats
            .as_ref()
            .map(|memory| {
                let stat = |names: [&str; 2]| names.iter().find_map(|name| memory.stats.get(*name)).copied().unwrap_or(0);
                MemoryStat {
                    cache: memory.cache,
                    usage: entry(memory.usage.as_ref()),
                    swap: entry(memory.swap_usage.as_ref()),
                    kernel: entry(memory.kernel_usage.as_ref()),
                    // What the kubelet calls the working set is usage without these; v2 has the first names, v1 the second.
                    total_inactive_file: stat(["total_inactive_file", "inactive_file"]),
                    inactive_file: stat(["inactive_file", "total_inactive_file"]),
                    total_rss: stat(["total_rss", "anon"]),
                    rss: stat(["rss", "anon"]),
                    pg_fault: stat(["pgfault", "total_pgfault"]),
                    pg_maj_fault: stat(["pgmajfault", "total_pgmajfault"]),
                    total_pg_fault: stat(["total_pgfault", "pgfault"]),
                    total_pg_maj_fault: stat(["total_pgmajfault", "pgmajfault"]),
                    ..Default::default()
                }
            })
            .into();
        metrics.pids =
            cgroup.pids_stats.as_ref().map(|pids| PidsStat { current: pids.current, limit: pids.limit, ..Default::default() }).into();
    }
    metrics.network = from
        .network_stats
        .iter()
        .map(|link| NetworkStat {
            name: link.name.clone(),
            rx_bytes: link.rx_bytes,
            rx_packets: link.rx_packets,
            rx_errors: link.rx_errors,
            rx_dropped: link.rx_dropped,
            tx_bytes: link.tx_bytes,
            tx_packets: link.tx_packets,
            tx_errors: link.tx_errors,
            tx_dropped: link.tx_dropped,
            ..Default::default()
        })
        .collect();
    Any { type_url: TYPE_URL.to_owned(), value: metrics.write_to_bytes().unwrap_or_default(), ..Default::default() }
}

fn entry(from: Option<&MemoryData>) -> containerd_shim_protos::protobuf::MessageField<MemoryEntry> {
    from.map(|data| MemoryEntry { limit: data.limit, usage: data.usage, max: data.max_usage, failcnt: data.failcnt, ..Default::default() })
        .into()
}
