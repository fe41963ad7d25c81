//! What a container uses, in the agent protocol's form.

use peerpods_protos::agent::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, MemoryData, MemoryStats, PidsStats, ThrottlingData,
};

use super::{Cgroup, keyed};

/// `USER_HZ`, the unit of `cpuacct.stat`; fixed for all x86 and arm kernels.
const NANOS_PER_TICK: u64 = 10_000_000;

impl Cgroup {
    /// Reads all statistics; what the kernel does not offer is 0.
    pub(crate) fn stats(&self) -> CgroupStats {
        let mut stats = CgroupStats::new();
        stats.cpu_stats = Some(if self.is_v2() { self.cpu_v2() } else { self.cpu_v1() }).into();
        stats.memory_stats = Some(if self.is_v2() { self.memory_v2() } else { self.memory_v1() }).into();
        let mut pids = PidsStats::new();
        pids.current = self.value("pids", "pids.current");
        pids.limit = self.value("pids", "pids.max");
        stats.pids_stats = Some(pids).into();
        stats.blkio_stats = Some(self.blkio()).into();
        stats
    }

    /// A file with one number; `max` and an absent file are 0.
    fn value(&self, controller: &str, file: &str) -> u64 {
        self.read(controller, file).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn cpu_v1(&self) -> CpuStats {
        let times = self.read("cpuacct", "cpuacct.stat").unwrap_or_default();
        let throttling = self.read("cpu", "cpu.stat").unwrap_or_default();
        let mut usage = CpuUsage::new();
        usage.total_usage = self.value("cpuacct", "cpuacct.usage");
        let per_cpu = self.read("cpuacct", "cpuacct.usage_percpu").unwrap_or_default();
        usage.percpu_usage = per_cpu.split_whitespace().filter_map(|value| value.parse().ok()).collect();
        usage.usage_in_usermode = keyed(&times, "user") * NANOS_PER_TICK;
        usage.usage_in_kernelmode = keyed(&times, "system") * NANOS_PER_TICK;
        cpu_stats(usage, &throttling, keyed(&throttling, "throttled_time"))
    }

    fn cpu_v2(&self) -> CpuStats {
        let stat = self.read("cpu", "cpu.stat").unwrap_or_default();
        let mut usage = CpuUsage::new();
        usage.total_usage = keyed(&stat, "usage_usec") * 1000;
        usage.usage_in_usermode = keyed(&stat, "user_usec") * 1000;
        usage.usage_in_kernelmode = keyed(&stat, "system_usec") * 1000;
        cpu_stats(usage, &stat, keyed(&stat, "throttled_usec") * 1000)
    }

    fn memory_v1(&self) -> MemoryStats {
        let data = |prefix: &str| {
            let mut data = MemoryData::new();
            data.usage = self.value("memory", &format!("{prefix}.usage_in_bytes"));
            data.max_usage = self.value("memory", &format!("{prefix}.max_usage_in_bytes"));
            data.failcnt = self.value("memory", &format!("{prefix}.failcnt"));
            data.limit = self.value("memory", &format!("{prefix}.limit_in_bytes"));
            data
        };
        let text = self.read("memory", "memory.stat").unwrap_or_default();
        let mut stats = MemoryStats::new();
        stats.cache = keyed(&text, "cache");
        stats.usage = Some(data("memory")).into();
        stats.swap_usage = Some(data("memory.memsw")).into();
        stats.kernel_usage = Some(data("memory.kmem")).into();
        stats.use_hierarchy = self.value("memory", "memory.use_hierarchy") == 1;
        stats.stats = pairs(&text).collect();
        stats
    }

    /// Shims turn these into v1 metrics, where the working set is the usage without `total_inactive_file`.
    fn memory_v2(&self) -> MemoryStats {
        let text = self.read("memory", "memory.stat").unwrap_or_default();
        let mut usage = MemoryData::new();
        usage.usage = self.value("memory", "memory.current");
        usage.max_usage = self.value("memory", "memory.peak");
        usage.failcnt = keyed(&self.read("memory", "memory.events").unwrap_or_default(), "max");
        usage.limit = self.read("memory", "memory.max").map_or(0, |limit| limit.trim().parse().unwrap_or(u64::MAX));
        let mut swap = MemoryData::new();
        swap.usage = usage.usage + self.value("memory", "memory.swap.current");
        swap.limit = usage.limit.saturating_add(self.value("memory", "memory.swap.max"));
        let mut stats = MemoryStats::new();
        stats.cache = keyed(&text, "file");
        stats.usage = Some(usage).into();
        stats.swap_usage = Some(swap).into();
        stats.use_hierarchy = true;
        stats.stats = pairs(&text).collect();
        for (v1, v2) in [
            ("cache", "file"),
            ("rss", "anon"),
            ("mapped_file", "file_mapped"),
            ("total_cache", "file"),
            ("total_rss", "anon"),
            ("total_inactive_file", "inactive_file"),
            ("total_active_file", "active_file"),
            ("total_inactive_anon", "inactive_anon"),
            ("total_active_anon", "active_anon"),
            ("total_pgfault", "pgfault"),
            ("total_pgmajfault", "pgmajfault"),
        ] {
            stats.stats.insert(v1.to_owned(), keyed(&text, v2));
        }
        stats
    }

    fn blkio(&self) -> BlkioStats {
        let mut stats = BlkioStats::new();
        if self.is_v2() {
            let text = self.read("io", "io.stat").unwrap_or_default();
            for (op, bytes, count) in [("Read", "rbytes", "rios"), ("Write", "wbytes", "wios")] {
                stats.io_service_bytes_recursive.extend(io_stat(&text, op, bytes));
                stats.io_serviced_recursive.extend(io_stat(&text, op, count));
            }
        } else {
            let file = |name: &str| blkio_file(&self.read("blkio", name).unwrap_or_default());
            stats.io_service_bytes_recursive = file("blkio.throttle.io_service_bytes_recursive");
            stats.io_serviced_recursive = file("blkio.throttle.io_serviced_recursive");
        }
        stats
    }
}

fn cpu_stats(usage: CpuUsage, throttling: &str, throttled_nanos: u64) -> CpuStats {
    let mut data = ThrottlingData::new();
    data.periods = keyed(throttling, "nr_periods");
    data.throttled_periods = keyed(throttling, "nr_throttled");
    data.throttled_time = throttled_nanos;
    let mut stats = CpuStats::new();
    stats.cpu_usage = Some(usage).into();
    stats.throttling_data = Some(data).into();
    stats
}

fn pairs(text: &str) -> impl Iterator<Item = (String, u64)> + '_ {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    })
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn entry(device_text: &str, op: &str, value: u64) -> Option<BlkioStatsEntry> {
    let (major, minor) = device(device_text)?;
    let mut entry = BlkioStatsEntry::new();
    entry.major = major;
    entry.minor = minor;
    op.clone_into(&mut entry.op);
    entry.value = value;
    Some(entry)
}

/// v2: `8:0 rbytes=1 wbytes=2 …`
fn io_stat(text: &str, op: &str, key: &str) -> Vec<BlkioStatsEntry> {
    text.lines()
        .filter_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            let value = rest.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
            entry(device, op, value.parse().ok()?)
        })
        .collect()
}

/// v1: `8:0 Read 1`
fn blkio_file(text: &str) -> Vec<BlkioStatsEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, op, value) = (words.next()?, words.next()?, words.next()?);
            entry(device, op, value.parse().ok()?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_lines_of_both_versions_are_read() {
        let v2 = io_stat("8:0 rbytes=4096 wbytes=1 rios=2\n254:1 dbytes=3\n", "Read", "rbytes");
        assert_eq!(v2.len(), 1);
        assert_eq!((v2[0].major, v2[0].minor, v2[0].value, v2[0].op.as_str()), (8, 0, 4096, "Read"));
        let v1 = blkio_file("8:0 Read 7\n8:0 Total 7\nTotal 7\n");
        assert_eq!(v1.len(), 2);
    }
}
