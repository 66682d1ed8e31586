//! `cargo xtask run`: one controller, one device, one app, shown while they come up and then live.
//!
//! Everything that is shown comes from where an operator would look: the console, the controller, the network.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::Parser;
use holdfast_format::pcr::{self, phase};
use holdfast_format::site::{self, Site};
use holdfast_harness::machine::accelerator;
use holdfast_scenarios::screen::Screen;
use holdfast_scenarios::stages::Line;
use holdfast_scenarios::webapp::NAME;
use holdfast_scenarios::world::boot_limit;
use holdfast_scenarios::{Artefacts, World, offline, secs};
use nix::sys::signal::{SigSet, Signal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the live lines are made anew.
const REFRESH: Duration = Duration::from_millis(700);
/// How often the app is asked while everything runs.
const ASK: Duration = Duration::from_secs(3);
/// Exit code of a program that Ctrl-C ended before it was done.
const INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(about = "Shows a device from power on to a running app")]
struct Args {
    /// Then carry the device to the second version.
    #[arg(long)]
    update: bool,
    /// Show the serial console as it is.
    #[arg(long)]
    console: bool,
    /// End once everything was shown.
    #[arg(long)]
    once: bool,
    /// SITE document of a foreign controller.
    #[arg(long)]
    site: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let stop = match stop_on_signal() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match run(&args, &stop) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if stop.load(Ordering::Relaxed) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C and SIGTERM set the flag that ends every wait; then all that was started is taken down in order.
fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    // Before any other thread: they inherit it.
    set.thread_block()?;
    let flag = stop.clone();
    std::thread::spawn(move || {
        while set.wait().is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
    });
    Ok(stop)
}

fn run(args: &Args, stop: &Arc<AtomicBool>) -> Result<()> {
    let mut builder = World::builder("demo").interrupt(stop.clone());
    if let Some(path) = &args.site {
        builder = builder.site(foreign_site(path)?);
    }
    let mut world = builder.build()?;
    let mut show = Show::new(args.console);
    show.screen.say(&format!("device with Secure Boot, TPM, watchdog; executed by {:?}", accelerator()));
    world.power_on()?;
    let result = match args.site {
        Some(_) => foreign(&mut world, &mut show, args, stop),
        None => own(&mut world, &mut show, args, stop),
    };
    show.screen.finish();
    if let Err(error) = &result
        && !stop.load(Ordering::Relaxed)
    {
        eprintln!("{error:#}\n{}", world.describe());
    }
    result
}

/// Our own controller: everything there is to see.
fn own(world: &mut World, show: &mut Show, args: &Args, stop: &AtomicBool) -> Result<()> {
    show.screen.say(&format!("controller {} knows its serial number", world.site().server));
    world.until("the device to register", boot_limit(), |world| {
        show.tick(world);
        Ok((!world.controller().devices().is_empty()).then_some(()))
    })?;
    world.wait_online(boot_limit())?;
    show.screen.say("device registered, its configuration is accepted");

    world.publish_webapp()?;
    let registry = world.registry();
    world.configure(|config| holdfast_scenarios::webapp::add(config, registry))?;
    show.screen.say("app ordered: a container image in the controller's registry, a network instance, a port map");
    answered(world, show)?;

    if args.update {
        let next = Artefacts::next()?;
        show.screen.say(&format!("update ordered: {} by BaseOsConfig", next.version));
        world.update_to(&next)?;
        world.until(&format!("version {} to be committed", next.version), secs(900), |world| {
            show.tick(world);
            let slots = world.slots()?;
            if let Some(bad) = slots.iter().find(|s| s.version == next.version && s.status.contains("FAIL")) {
                anyhow::bail!("the update failed: {bad:?}");
            }
            Ok(slots.first().is_some_and(|s| s.version == next.version && s.state == "active").then_some(()))
        })?;
        show.refresh(world);
        show.screen.say(&format!("{} runs and is committed", next.version));
        answered(world, show)?;
    }
    if args.once {
        return Ok(());
    }
    show.screen.say("Ctrl-C ends it");
    while !stop.load(Ordering::Relaxed) && world.device.is_on() {
        show.tick(world);
        std::thread::sleep(REFRESH);
    }
    Ok(())
}

fn answered(world: &mut World, show: &mut Show) -> Result<()> {
    world.until("the app to answer", secs(400), |world| {
        show.tick(world);
        Ok((show.app_answers && world.app_runs(NAME)?).then_some(()))
    })?;
    show.refresh(world);
    show.screen.say(&format!("the app answers at http://{}/", world.app_address()));
    Ok(())
}

/// Somebody else's controller: the console is all we see.
fn foreign(world: &mut World, show: &mut Show, args: &Args, stop: &AtomicBool) -> Result<()> {
    world.stop_controller();
    show.screen.say(&format!("belongs to controller {}", world.site().server));
    if args.once {
        return world.until("a configuration from the controller", boot_limit(), |world| {
            show.tick(world);
            Ok(world
                .console()
                .iter()
                .any(|l| l.text.starts_with("config ") && l.text.contains("accepted"))
                .then_some(()))
        });
    }
    while !stop.load(Ordering::Relaxed) && world.device.is_on() {
        show.tick(world);
        std::thread::sleep(REFRESH);
    }
    Ok(())
}

fn foreign_site(path: &Path) -> Result<Site> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = site::read(bytes.as_slice()).with_context(|| path.display().to_string())?;
    Ok(found.with_context(|| format!("{}: expected a SITE document, found zeros", path.display()))?.site)
}

/// What was shown so far.
struct Show {
    screen: Screen,
    raw: bool,
    shown: usize,
    refreshed: Option<Instant>,
    asked: Option<Instant>,
    answer: String,
    app_answers: bool,
    /// A version and what PCR 11 must be while it runs.
    predicted: (String, String),
}

impl Show {
    fn new(raw: bool) -> Self {
        Self {
            screen: Screen::default(),
            raw,
            shown: 0,
            refreshed: None,
            asked: None,
            answer: "not asked yet".into(),
            app_answers: false,
            predicted: Default::default(),
        }
    }

    /// Shows what is new, if it was not looked at a moment ago.
    fn tick(&mut self, world: &mut World) {
        if self.refreshed.is_none_or(|t| t.elapsed() >= REFRESH) {
            self.refresh(world);
        }
    }

    /// Shows what is new.
    fn refresh(&mut self, world: &mut World) {
        self.refreshed = Some(Instant::now());
        self.console(world);
        if let Ok(block) = self.status(world) {
            self.screen.show(block);
        }
    }

    fn console(&mut self, world: &mut World) {
        let text = world.device.serial().text();
        // The last line may still be growing.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[self.shown.min(whole)..whole].lines() {
            match Line::parse(line) {
                _ if self.raw => self.screen.say(line),
                Some(line) if matches!(line.who.as_str(), "pid1" | "node") => {
                    let mark = if line.stage().is_some() { "boot" } else { &line.who };
                    self.screen.say(&format!("{:8.3} s  {mark:5} {}", line.at.as_secs_f32(), line.text));
                }
                _ => {}
            }
        }
        self.shown = whole;
    }

    /// The live lines.
    fn status(&mut self, world: &mut World) -> Result<Vec<String>> {
        // What another controller knows is shown there.
        if !world.has_controller() {
            return Ok(vec![]);
        }
        let Ok(status) = world.status() else {
            return Ok(vec!["device     booting".into()]);
        };
        let mut block = Vec::new();
        let accepted = if status.config_accepted { "accepted" } else { "on its way" };
        let state = status.device.first().map_or("state: unknown", String::as_str);
        block.push(format!("device     {}  {state}  configuration {} {accepted}", status.uuid, status.config_revision));
        if let Some(report) = &status.attestation {
            let verdict = if report.accepted { "accepted" } else { "refused" };
            block.push(format!("TPM        quote {verdict}: {}", report.reason));
            let running = world.slots()?.into_iter().next().map(|slot| slot.version).unwrap_or_default();
            if self.predicted.0 != running || self.predicted.1.is_empty() {
                self.predicted = (running.clone(), predict(world, &running));
            }
            block.push(pcr_line(world, &report.pcrs, &self.predicted.1));
        }
        if let Some(info) = world.device_info()? {
            let vault = info.data_sec_at_rest_info.map(|v| v.status().as_str_name().to_owned());
            block.push(format!("vault      {}", vault.unwrap_or_default()));
        }
        for slot in world.slots()?.iter().filter(|s| !s.version.is_empty()) {
            let words = if slot.text.is_empty() { String::new() } else { format!("  {}", slot.text) };
            block.push(format!("slot       {} {} {} {}{words}", slot.label, slot.version, slot.state, slot.status));
        }
        for object in status.objects.iter().filter(|o| !o.name.is_empty()) {
            block.push(format!(
                "{:10} {} {} {}{}",
                short(&object.kind),
                object.name,
                object.state,
                object.addresses.join(" "),
                object.errors.iter().map(|e| format!("  error: {e}")).collect::<String>()
            ));
        }
        if world.app_runs(NAME)? {
            self.ask(world);
            block.push(format!("url        http://{}/  {}", world.app_address(), self.answer));
        }
        Ok(block)
    }

    fn ask(&mut self, world: &World) {
        if self.asked.is_some_and(|t| t.elapsed() < ASK) {
            return;
        }
        self.asked = Some(Instant::now());
        (self.app_answers, self.answer) = match world.http_once("/") {
            Ok((200, page)) => (true, format!("answers {:?}", page.lines().next().unwrap_or_default())),
            Ok((status, _)) => (false, format!("status {status}")),
            Err(error) => (false, format!("{error:#}")),
        };
    }
}

/// PCR 11 and 14 beside what they must be.
fn pcr_line(world: &World, pcrs: &std::collections::BTreeMap<u32, String>, image: &str) -> String {
    let site = hex::encode(pcr::predict_site(Some(world.site_document())));
    let part = |index: u32, expected: &str, what: &str| {
        let found = pcrs.get(&index).map_or("-", String::as_str);
        let verdict = if found == expected { "as predicted from" } else { "not that of" };
        format!("PCR {index} {} {verdict} {what}", found.get(..16).unwrap_or(found))
    };
    format!("           {}; {}", part(11, image, "the image and its phases"), part(14, &site, "SITE"))
}

/// What PCR 11 must be while `version` runs: the same UKI lies in the image of that version, whatever its SITE.
fn predict(world: &World, version: &str) -> String {
    let phases = [phase::ENTER_PID1, phase::VAULT_OPEN, phase::READY];
    let image = match Artefacts::next() {
        Ok(next) if next.version == version => next.image,
        _ => world.image().to_owned(),
    };
    offline::predict_pcr11(&image, &phases).unwrap_or_default()
}

fn short(kind: &str) -> &str {
    if kind == "network-instance" { "network" } else { kind }
}
