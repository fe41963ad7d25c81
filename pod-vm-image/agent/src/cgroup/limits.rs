//! New limits for a running container.

use std::io;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::Cgroup;

impl Cgroup {
    /// Applies the limits that are present.
    pub(crate) fn apply(&self, resources: &LinuxResources) -> io::Result<()> {
        if let Some(memory) = resources.memory() {
            if self.is_v2() { self.apply_memory_v2(memory)? } else { self.apply_memory_v1(memory)? }
        }
        if let Some(cpu) = resources.cpu() {
            if self.is_v2() {
                self.apply_cpu_v2(cpu)?
            } else {
                self.apply_cpu_v1(cpu)?
            }
            for (file, value) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
                if let Some(value) = value {
                    self.write("cpuset", file, value)?;
                }
            }
        }
        if let Some(limit) = resources.pids().map(|pids| pids.limit()) {
            self.write("pids", "pids.max", &limit_text(limit))?;
        }
        Ok(())
    }

    /// The sum with swap may never be below the memory limit, so the order depends on which way they move.
    fn apply_memory_v1(&self, memory: &LinuxMemory) -> io::Result<()> {
        let limit = || memory.limit().map_or(Ok(()), |limit| self.write("memory", "memory.limit_in_bytes", &limit.to_string()));
        let Some(sum) = memory.swap().filter(|_| self.read("memory", "memory.memsw.limit_in_bytes").is_some()) else { return limit() };
        let sum_limit = || self.write("memory", "memory.memsw.limit_in_bytes", &sum.to_string());
        let current: i64 = self.read("memory", "memory.limit_in_bytes").and_then(|text| text.trim().parse().ok()).unwrap_or(i64::MAX);
        if sum == -1 || sum > current {
            sum_limit()?;
            limit()
        } else {
            limit()?;
            sum_limit()
        }
    }

    fn apply_memory_v2(&self, memory: &LinuxMemory) -> io::Result<()> {
        if let Some(limit) = memory.limit() {
            if let Some(sum) = memory.swap().filter(|_| self.read("memory", "memory.swap.max").is_some()) {
                let swap = if sum < 0 || limit < 0 { -1 } else { (sum - limit).max(0) };
                self.write("memory", "memory.swap.max", &limit_text(swap))?;
            }
            self.write("memory", "memory.max", &limit_text(limit))?;
        }
        memory.reservation().map_or(Ok(()), |bytes| self.write("memory", "memory.low", &limit_text(bytes)))
    }

    fn apply_cpu_v1(&self, cpu: &LinuxCpu) -> io::Result<()> {
        if let Some(shares) = cpu.shares() {
            self.write("cpu", "cpu.shares", &shares.to_string())?;
        }
        if let Some(period) = cpu.period() {
            self.write("cpu", "cpu.cfs_period_us", &period.to_string())?;
        }
        cpu.quota().map_or(Ok(()), |quota| self.write("cpu", "cpu.cfs_quota_us", &quota.to_string()))
    }

    fn apply_cpu_v2(&self, cpu: &LinuxCpu) -> io::Result<()> {
        if let Some(shares) = cpu.shares() {
            self.write("cpu", "cpu.weight", &weight(shares).to_string())?;
        }
        if cpu.quota().is_none() && cpu.period().is_none() {
            return Ok(());
        }
        let quota = cpu.quota().map_or("max".to_owned(), limit_text);
        let period = cpu.period().map_or(String::new(), |period| format!(" {period}"));
        self.write("cpu", "cpu.max", &format!("{quota}{period}"))
    }
}

fn limit_text(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// Shares 2..262144 as weight 1..10000, by the formula all runtimes use.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_span_the_range() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight), [1, 1, 39, 10_000, 10_000]);
    }
}
