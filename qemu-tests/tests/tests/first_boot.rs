//! The whole way once: a machine that has never booted, until its app answers on the network, and what the app survives.
//!
//! The wrong way to see it would be to believe the device: that it attested, runs the app, or restarted it. So PCRs are compared with what is
//! computed here from the image on disk, the app is asked over the network, and a restart shows in what the app itself counts.

use anyhow::{Context, Result, bail, ensure};
use holdfast_api::proto::info::{AttestationState, BootReason, DataSecAtRestStatus, ZNetworkInstanceState};
use holdfast_format::pcr::{self, phase};
use holdfast_scenarios::memory::{self, Process};
use holdfast_scenarios::resources::grown;
use holdfast_scenarios::webapp::{NAME, NETWORK};
use holdfast_scenarios::world::{boot_limit, soon};
use holdfast_scenarios::{World, offline, scenario, secs};
use std::collections::BTreeMap;

#[test]
fn first_boot_reaches_an_app_over_secure_boot_and_tpm() {
    scenario(World::builder("first-boot"), |world| {
        world.power_on()?;
        world.wait_online(boot_limit())?;
        step(world, "online");
        the_device_has_proved_itself(world)?;
        let limits = xtask::budgets::limits()?;
        host_fits_into_its_budgets(world, &limits)?;

        world.deploy_webapp(boot_limit())?;
        step(world, "the app answers");
        network_app_log_and_metrics_are_reported(world)?;
        vmm_fits_into_its_budget(world, &limits)?;
        step(world, "reports and budgets are right");

        the_app_does_not_notice_that_the_agent_dies(world)?;
        step(world, "the agent came back");
        restart_keeps_what_the_app_wrote_and_purge_does_not(world)?;
        step(world, "restarted and purged");
        deactivated_it_stops_and_activated_it_has_its_data(world)?;
        step(world, "stopped and started");
        queues_follow_the_processors_and_nothing_is_left_behind(world)?;

        the_app_comes_back_without_a_controller(world)?;
        step(world, "back without a controller");
        a_deleted_app_is_gone(world)
    });
}

fn step(world: &World, what: &str) {
    eprintln!("{:6.1} s: {what}", world.age().as_secs_f32());
}

fn the_device_has_proved_itself(world: &mut World) -> Result<()> {
    let report = world.attestation()?;
    ensure!(report.accepted, "the quote was refused: {}", report.reason);
    let expected = offline::predict_pcr11(world.image(), &[phase::ENTER_PID1, phase::VAULT_OPEN, phase::READY])?;
    assert_eq!(report.pcrs.get(&11), Some(&expected), "PCR 11 is that of the UKI on the disk and the phases since");
    let site = hex::encode(pcr::predict_site(Some(world.site_document())));
    assert_eq!(report.pcrs.get(&14), Some(&site), "PCR 14 is that of the SITE document");
    for unused in [12, 13] {
        assert_eq!(report.pcrs.get(&unused), Some(&hex::encode(pcr::ZERO)), "PCR {unused} was never extended");
    }
    let firmware: Vec<u32> = report.log_mismatches.iter().copied().filter(|p| *p < 8).collect();
    ensure!(firmware.is_empty(), "the event log does not lead to PCRs {firmware:?}; {}", report.log_error);

    let info = world.wait_device_info("attestation complete in the device info", soon(), |d| {
        d.attestation_info.as_ref().is_some_and(|a| a.state() == AttestationState::Complete)
    })?;
    let vault = info.data_sec_at_rest_info.as_ref().context("no word about data at rest")?;
    assert_eq!(vault.status(), DataSecAtRestStatus::DatasecAtRestEnabled, "sealed vault: {}", vault.info);
    assert_eq!(info.last_boot_reason(), BootReason::First);
    let running = info.sw_list.first().context("no slot reported")?;
    assert_eq!(running.short_version, world.artefacts().version);
    assert_eq!(running.partition_state, "active");
    Ok(())
}

fn host_fits_into_its_budgets(world: &mut World, limits: &BTreeMap<String, u64>) -> Result<()> {
    let processes = world.host_memory(soon())?;
    eprintln!("idle: {}", table(&processes));
    within(limits, "memory-host-idle", memory::total(&processes))?;
    // The kernel names PID 1 after its file.
    let pid1 = processes.iter().find(|p| p.name == "init").context("PID 1 is not among the processes")?;
    within(limits, "memory-pid1", pid1.bytes())
}

fn vmm_fits_into_its_budget(world: &mut World, limits: &BTreeMap<String, u64>) -> Result<()> {
    let processes = world.host_memory(soon())?;
    eprintln!("with an app: {}", table(&processes));
    let vmm = processes.iter().find(|p| p.guest_bytes > 0).context("no process holds a guest's memory")?;
    within(limits, "memory-vmm-overhead", vmm.bytes())
}

fn within(limits: &BTreeMap<String, u64>, name: &str, bytes: u64) -> Result<()> {
    let limit = *limits.get(name).with_context(|| format!("docs/budgets.tsv has no {name}"))?;
    eprintln!("{name}: {} KiB of {} KiB", bytes / 1024, limit / 1024);
    ensure!(bytes <= limit, "{name}: {bytes} bytes, budget {limit}");
    Ok(())
}

fn table(processes: &[Process]) -> String {
    let list: Vec<String> =
        processes.iter().map(|p| format!("{} {}+{} KiB", p.name, p.own_bytes / 1024, p.mapped_bytes / 1024)).collect();
    list.join(", ")
}

fn network_app_log_and_metrics_are_reported(world: &mut World) -> Result<()> {
    world.wait_app(NAME, "an address in the report", soon(), |app| {
        app.network.iter().any(|n| n.ip_addrs.iter().any(|ip| ip.starts_with("10.11.0.")))
    })?;
    let instance = world.network_instance_info(NETWORK)?.context("no report of the network instance")?;
    assert_eq!(instance.state(), ZNetworkInstanceState::ZnetinstStateOnline);

    let since = world.controller().position();
    let page = world.http_get("/", soon())?;
    ensure!(page.contains("Hello from Holdfast"), "the greeting comes by user data: {page}");
    world.wait_app_log(NAME, since, "request GET / ", soon())?;

    let uuid = world.uuid()?;
    world.until("metrics of device, app and network instance", soon(), |world| {
        let messages = world.controller().metrics(uuid)?;
        let fits = messages.iter().any(|m| {
            let app = m.am.iter().any(|a| a.app_name == NAME && a.cpu.as_ref().is_some_and(|c| c.total_ns > 0));
            let network = m.nm.iter().any(|n| n.displayname == NETWORK);
            app && network
        });
        Ok(fits.then_some(()))
    })
}

fn the_app_does_not_notice_that_the_agent_dies(world: &mut World) -> Result<()> {
    let agent = |l: &holdfast_scenarios::stages::Line| l.who == "node" && l.text.contains(" in slot ");
    let starts = world.console().iter().filter(|l| agent(l)).count();
    let before = uptime(world)?;
    let since = world.controller().position();
    world.configure(|config| {
        config.properties.insert("debug.node.abort".into(), "once".into());
    })?;
    let mut asked = 0;
    world.until("the agent to be started again", soon(), |world| {
        // Each look asks the app too: it must answer all the time.
        match world.http_once("/health") {
            Ok((200, _)) => asked += 1,
            other => bail!("the app did not answer while the agent was away: {other:?}"),
        }
        Ok((world.console().iter().filter(|l| agent(l)).count() > starts).then_some(()))
    })?;
    world.wait_contact(since, soon())?;
    world.wait_accepted(soon())?;
    world.wait_app_state(NAME, "RUNNING", soon())?;
    let after = uptime(world)?;
    ensure!(asked > 0 && after >= before, "the app was restarted with the agent: uptime {before} s, then {after} s");
    Ok(())
}

fn restart_keeps_what_the_app_wrote_and_purge_does_not(world: &mut World) -> Result<()> {
    let first = count(world)?;
    let before = requests(world)?;
    world.configure_webapp(|app| app.restart += 1)?;
    started_anew(world, before)?;
    assert_eq!(count(world)?, first + 1, "a restart keeps the app's disk");

    let before = requests(world)?;
    world.configure_webapp(|app| app.purge += 1)?;
    started_anew(world, before)?;
    assert_eq!(count(world)?, 1, "a purge makes the app's disk anew");
    Ok(())
}

fn deactivated_it_stops_and_activated_it_has_its_data(world: &mut World) -> Result<()> {
    let counted = count(world)?;
    let before = requests(world)?;
    world.configure_webapp(|app| app.activate = false)?;
    world.wait_app_state(NAME, "HALTED", soon())?;
    ensure!(world.http_once("/health").is_err(), "the app answers although it is reported halted");
    let processes = world.host_memory(soon())?;
    ensure!(
        processes.iter().all(|p| p.guest_bytes == 0),
        "a process still holds a guest's memory: {}",
        table(&processes)
    );

    world.configure_webapp(|app| app.activate = true)?;
    world.wait_app_state(NAME, "RUNNING", soon())?;
    started_anew(world, before)?;
    assert_eq!(count(world)?, counted + 1, "a stopped app keeps its disk");
    Ok(())
}

/// The app's own count of processors, the kernel's of the tap's queues, and what the kernel says that the host's programs hold.
fn queues_follow_the_processors_and_nothing_is_left_behind(world: &mut World) -> Result<()> {
    let first = world.least_host_resources(soon())?;
    assert_eq!(first.taps.values().collect::<Vec<_>>(), [&1], "one app with one processor: {first:?}");
    for vcpus in [4, 1, 4, 1] {
        let before = requests(world)?;
        world.configure_webapp(|app| app.vcpus = vcpus)?;
        world.wait_app(NAME, "to be told that it needs a restart", soon(), |app| {
            app.app_err.iter().any(|e| e.description.contains("takes effect with the next start"))
        })?;
        // Its tap is of the wrong kind for what is wanted now, and stays as long as the app does.
        let asked = requests(world)?;
        ensure!(
            asked > before,
            "a changed number of processors alone restarted the app: {before} requests, then {asked}"
        );

        world.configure_webapp(|app| app.restart += 1)?;
        started_anew(world, asked)?;
        let page = world.http_get("/", soon())?;
        assert_eq!(field(&page, "cpus"), Some(u64::from(vcpus)), "{page}");
        world.fetch_bulk(soon())?;
        // Of each queue beyond the first PID 1 keeps two descriptors: the tap's and its vhost-net's.
        let kept = 2 * (vcpus - 1);
        // A connection to the controller that nobody uses is closed after a while: what grew is looked at again.
        let mut last = String::new();
        let settled = world.until("the host to hold no more than before", secs(240), |world| {
            let now = world.host_resources(soon())?;
            let mut wrong = grown(&first, &now, kept);
            if now.taps.values().any(|queues| *queues != vcpus) {
                wrong.push(format!("queues in use are {:?}, expected {vcpus}", now.taps));
            }
            let now = wrong.join("; ");
            if now != last && !now.is_empty() {
                eprintln!("not yet: {now}");
            }
            last = now;
            Ok(wrong.is_empty().then_some(()))
        });
        settled.with_context(|| format!("{vcpus} processors: {last}"))?;
        step(world, &format!("restarted with {vcpus} processors and as many queues"));
    }
    Ok(())
}

fn the_app_comes_back_without_a_controller(world: &mut World) -> Result<()> {
    let counted = count(world)?;
    let confirmed = confirmed_blocks(world)?;
    world.stop_controller();
    // In the middle of its writing.
    world.power_cycle()?;
    world.http_get("/health", boot_limit())?;
    let newest = world.http_get(&format!("/journal/verify?confirmed={confirmed}"), soon())?;
    eprintln!("blocks: generation {confirmed} was confirmed, {} is the newest after the power cut", newest.trim());
    // The last count may have been lost with the power: its rename waits for the file system's next commit.
    let now = count(world)?;
    ensure!(now == counted || now == counted + 1, "the app counted {counted} before the power cut and {now} after it");

    world.start_controller()?;
    let since = world.controller().position();
    world.wait_contact(since, boot_limit())?;
    world.wait_device_info("a boot after a power cut", soon(), |d| d.last_boot_reason() == BootReason::PowerFail)?;
    ensure!(world.attestation()?.accepted, "the second boot attests like the first");
    Ok(())
}

/// Has the app write blocks and sync them; the last generation that it says is on its disk. It goes on writing.
fn confirmed_blocks(world: &mut World) -> Result<u64> {
    const ENOUGH: u64 = 20;
    world.http_get("/journal/start", soon())?;
    world.until("the app to have confirmed its blocks", soon(), |world| {
        let Ok((200, text)) = world.http_once("/journal") else { return Ok(None) };
        let confirmed: u64 = text.trim().parse()?;
        Ok((confirmed >= ENOUGH).then_some(confirmed))
    })
}

fn a_deleted_app_is_gone(world: &mut World) -> Result<()> {
    world.configure_and_wait(soon(), |config| {
        config.apps.clear();
        config.images.clear();
        config.network_instances.clear();
    })?;
    world.until("the app to be silent", soon(), |world| Ok(world.http_once("/health").is_err().then_some(())))?;
    // An empty report is how a device says that an object is no more.
    world.wait_app(NAME, "to be reported gone", soon(), |app| app.app_name.is_empty())?;
    Ok(())
}

/// The app counts its requests in memory: each look adds one, only a new start makes the number smaller.
fn started_anew(world: &mut World, before: u64) -> Result<()> {
    let mut last = before;
    world.until("the app to be started anew", secs(240), |world| {
        let Ok((200, page)) = world.http_once("/") else { return Ok(None) };
        // An app that is stopped in the middle of an answer leaves a page without its end.
        let Some(now) = field(&page, "requests") else { return Ok(None) };
        let anew = now <= last;
        last = now;
        Ok(anew.then_some(()))
    })
}

fn requests(world: &mut World) -> Result<u64> {
    let page = world.http_get("/", soon())?;
    field(&page, "requests").with_context(|| format!("no count of requests in {page:?}"))
}

fn uptime(world: &mut World) -> Result<u64> {
    let page = world.http_get("/", soon())?;
    field(&page, "uptime_seconds").with_context(|| format!("no uptime in {page:?}"))
}

fn count(world: &mut World) -> Result<u64> {
    Ok(world.http_get("/count", soon())?.trim().parse()?)
}

fn field(page: &str, name: &str) -> Option<u64> {
    page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}
