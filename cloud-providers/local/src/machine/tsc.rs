//! The host's TSC frequency: what a guest's clock counts under software emulation, and what it has no other way to learn.
//!
//! QEMU's TCG answers `rdtsc` with the host's counter; a microvm has no PIT, HPET or PM timer to measure it by, and its kernel stops
//! at boot unless `tsc_early_khz` tells it. An error of 1e-5 makes the guest's clock drift by a second a day.
//!
//! Reading the counter ourselves to measure it takes an unsafe instruction, which this crate does without.

use std::arch::x86_64::__cpuid;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::OFlag;
use peerpods_cloud_api::settings::local::LocalSettings;

use super::MachineError;
use super::facts::Facts;

/// From the settings, what was found earlier in this boot, or what the kernel and CPUID say, in this order.
pub(crate) fn khz(settings: &LocalSettings) -> Result<u32, MachineError> {
    let (_lock, mut facts) = Facts::lock(&settings.state_dir)?;
    if let Some(known) = settings.tsc_khz.or(facts.tsc_khz) {
        return Ok(known);
    }
    let missing = "neither the kernel nor CPUID tells the host's TSC frequency; set provider.local.tsc_khz";
    let found = find().ok_or_else(|| MachineError::invalid(missing))?;
    // The log is a ring: what it says now may be gone by the next start.
    facts.tsc_khz = Some(found);
    facts.write(&settings.state_dir)?;
    Ok(found)
}

/// What this host itself says, without the settings.
pub(crate) fn find() -> Option<u32> {
    from_sysfs().or_else(from_kernel_log).or_else(from_cpuinfo).or_else(from_cpuid)
}

fn from_sysfs() -> Option<u32> {
    let path = Path::new("/sys/devices/system/cpu/cpu0/tsc_freq_khz");
    std::fs::read_to_string(path).ok()?.trim().parse().ok().filter(is_plausible)
}

fn from_kernel_log() -> Option<u32> {
    let flags = OFlag::O_NONBLOCK.bits();
    let mut log = std::fs::OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg").ok()?;
    // One read gives one record, at most 8 KiB.
    let mut record = vec![0; 8192];
    let mut found = None;
    loop {
        match log.read(&mut record) {
            Ok(0) => return found,
            Ok(length) => found = from_log_line(&String::from_utf8_lossy(record.get(..length).unwrap_or_default())).or(found),
            // Overwritten while we read: the next read goes on after the gap.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EPIPE as i32) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return found,
        }
    }
}

/// `tsc: Detected 2596.124 MHz TSC`, or the later, better `tsc: Refined TSC clocksource calibration: 2596.100 MHz`.
fn from_log_line(line: &str) -> Option<u32> {
    let line = line.split_once(';').map_or(line, |(_, message)| message);
    let text = line.trim_start().strip_prefix("tsc: ")?;
    let text = text.strip_prefix("Detected ").or_else(|| text.strip_prefix("Refined TSC clocksource calibration: "))?;
    parse_mhz(text.split_once(" MHz")?.0)
}

/// `cpu MHz` of `/proc/cpuinfo` where the kernel has nothing to measure it by and so shows what it calibrated: in most VMs.
fn from_cpuinfo() -> Option<u32> {
    if Path::new("/sys/devices/system/cpu/cpu0/cpufreq").exists() {
        return None;
    }
    from_cpuinfo_text(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn from_cpuinfo_text(text: &str) -> Option<u32> {
    let field = |name: &str| {
        text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()))
    };
    let has = |flag: &str| field("flags").is_some_and(|flags| flags.split(' ').any(|one| one == flag));
    (has("constant_tsc") && !has("aperfmperf")).then(|| parse_mhz(field("cpu MHz")?)).flatten()
}

/// `2596.124` in kHz.
fn parse_mhz(text: &str) -> Option<u32> {
    let (mhz, fraction) = text.split_once('.')?;
    let khz = mhz.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(fraction.parse().ok()?)?;
    (fraction.len() == 3).then_some(khz).filter(is_plausible)
}

fn from_cpuid() -> Option<u32> {
    let highest = __cpuid(0).eax;
    if highest >= 0x15 {
        // Crystal frequency in Hz, times a ratio.
        let leaf = __cpuid(0x15);
        let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax.max(1));
        if let Some(khz) = u32::try_from(hz / 1000).ok().filter(is_plausible) {
            return Some(khz);
        }
    }
    let has_hypervisor = __cpuid(1).ecx & (1 << 31) != 0;
    if has_hypervisor && (0x4000_0010..0x4000_1000).contains(&__cpuid(0x4000_0000).eax) {
        // VMware's leaf, which others offer too.
        return Some(__cpuid(0x4000_0010).eax).filter(is_plausible);
    }
    None
}

/// Between 100 MHz and 10 GHz.
fn is_plausible(khz: &u32) -> bool {
    (100_000..=10_000_000).contains(khz)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_is_read_from_the_kernels_own_words() {
        assert_eq!(from_log_line("6,123,59,-;tsc: Detected 2596.124 MHz processor\n"), Some(2_596_124));
        assert_eq!(from_log_line("6,9,9,-;tsc: Refined TSC clocksource calibration: 1995.312 MHz\n"), Some(1_995_312));
        assert_eq!(from_log_line("tsc: Detected 3000.000 MHz TSC"), Some(3_000_000));
        for other in
            ["", "tsc: Detected fast MHz", "tsc: Detected 1.000 MHz", "tsc: Detected 2596.12 MHz", "6,1,1,-;clock: Detected 2596.124 MHz"]
        {
            assert_eq!(from_log_line(other), None, "{other}");
        }
        let cpuinfo = "processor\t: 0\ncpu MHz\t\t: 2596.124\nflags\t\t: fpu constant_tsc\n";
        assert_eq!(from_cpuinfo_text(cpuinfo), Some(2_596_124));
        assert_eq!(from_cpuinfo_text(&cpuinfo.replace("fpu", "aperfmperf")), None);
    }
}
