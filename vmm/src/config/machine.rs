//! How the machine sits on its host: ranges of its memory and CPUs.

use holdfast_model::contract::vm::VmConfig;

use super::{ConfigError, range};
use crate::memory::unit_mib;
use crate::vcpu::affinity::MAX_HOST_CPUS;

/// Checks what can be checked without asking the host.
pub(super) fn validate(config: &VmConfig) -> Result<(), ConfigError> {
    let (pages, mib) = (config.hugepages, config.memory_mib);
    let expected = format!("a multiple of {} for this page size", unit_mib(pages));
    range("memory_mib", &mib, &expected, mib.is_multiple_of(unit_mib(pages)))?;
    let count = config.cpus.len();
    let expected = format!("one for each of {} vCPUs, or to be left out", config.vcpus);
    range("cpus", &format!("{count} entries"), &expected, count == 0 || count == usize::from(config.vcpus))?;
    for (n, cpus) in config.cpus.iter().enumerate() {
        let numbers = cpus.numbers();
        let sound = !numbers.is_empty() && numbers.iter().all(|cpu| *cpu < MAX_HOST_CPUS);
        range(&format!("cpus[{n}]"), &format!("{numbers:?}"), &format!("host CPUs below {MAX_HOST_CPUS}"), sound)?;
    }
    Ok(())
}

/// Checks `config.cpus` against the host CPUs that this process may use.
///
/// # Errors
/// [`ConfigError::Range`] names the vCPU.
pub fn check_host_cpus(config: &VmConfig, allowed: &[usize]) -> Result<(), ConfigError> {
    for (n, cpus) in config.cpus.iter().enumerate() {
        let expected =
            format!("host CPUs that are online and open to this process: {}", crate::vcpu::affinity::ranges(allowed));
        let known = cpus.numbers().iter().all(|cpu| allowed.contains(cpu));
        range(&format!("cpus[{n}]"), &format!("{:?}", cpus.numbers()), &expected, known)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;
    use holdfast_model::contract::vm::HostCpus;
    use holdfast_model::contract::vm::{FileRef, PageSize};
    use holdfast_model::contract::write;

    fn config(change: impl Fn(&mut VmConfig)) -> Result<VmConfig, ConfigError> {
        let mut config = VmConfig::new("t", FileRef::Path("k".into()));
        config.vcpus = 2;
        change(&mut config);
        parse(&write(&config).unwrap())
    }

    #[test]
    fn a_vcpu_has_one_host_cpu_or_several() {
        let text = br#"{"version": 1, "name": "t", "vcpus": 2, "memory_mib": 64, "kernel": {"path": "k"}, "cpus": [3, [0, 1]]}"#;
        let config = parse(text).unwrap();
        assert_eq!(config.cpus.iter().map(HostCpus::numbers).collect::<Vec<_>>(), [&[3][..], &[0, 1]]);
        assert_eq!(parse(&write(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn faults_name_the_field() {
        type Change = fn(&mut VmConfig);
        let cases: [(&str, Change); 5] = [
            ("cpus is 1 entries", |c| c.cpus = vec![HostCpus::One(0)]),
            ("cpus[1] is []", |c| c.cpus = vec![HostCpus::One(0), HostCpus::AnyOf(vec![])]),
            ("cpus[0] is [1024]", |c| c.cpus = vec![HostCpus::One(1024), HostCpus::One(0)]),
            ("memory_mib is 129", |c| (c.memory_mib, c.hugepages) = (129, PageSize::Huge2M)),
            ("multiple of 1024", |c| c.hugepages = PageSize::Huge1G),
        ];
        for (words, change) in cases {
            let error = config(change).unwrap_err().to_string();
            assert!(error.contains(words), "{words:?} not in {error:?}");
        }
    }

    #[test]
    fn host_cpus_that_are_not_there_are_named() {
        let config = config(|c| c.cpus = vec![HostCpus::One(0), HostCpus::AnyOf(vec![1, 9])]).unwrap();
        check_host_cpus(&config, &[0, 1, 2, 9]).unwrap();
        let error = check_host_cpus(&config, &[0, 1, 2]).unwrap_err().to_string();
        assert!(error.contains("cpus[1] is [1, 9]") && error.contains(": 0-2"), "{error}");
    }
}
