//! How much memory there is.

use std::fs;

/// Bytes that programs may still take without others being put out, where the system says so (Linux).
pub(crate) fn available() -> Option<u64> {
    available_in(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_is_read() {
        let meminfo =
            "MemTotal:       24684084 kB\nMemFree:          522508 kB\nMemAvailable:   24203364 kB\n";
        assert_eq!(available_in(meminfo), Some(24_203_364 << 10));
        assert_eq!(available_in("MemTotal: 1 kB\n"), None);
    }
}
