mod hostile;
mod life;
mod ranges;
mod requests;

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_IN as IN;

use super::engine::Engine;
use super::format::Format;
use super::*;
use crate::memory::GuestRam;
use crate::virtio::testing::{Driver, activation, ram};
use crate::virtio::{ActiveDevice, Device, DeviceFault};
use holdfast_model::contract::vm::ImageType;

const HEADER: u64 = 0x8_0000;
const DATA: u64 = 0x9_0000;
const STATUS: u64 = 0xa_0000;
/// Sectors of [`image`].
const SECTORS: u64 = 256;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// A status byte that nobody has written.
const UNTOUCHED: u8 = 0xff;

/// A file whose sectors hold their numbers plus one.
fn image() -> File {
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..SECTORS).flat_map(|sector| [sector as u8 | 1; 512]).collect();
    file.write_all(&content).unwrap();
    file
}

fn options(read_only: bool) -> BlockOptions {
    BlockOptions { id: "data".into(), read_only, ..BlockOptions::default() }
}

fn header(driver: &Driver<'_>, kind: u32, sector: u64) {
    let mut bytes = [0u8; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    driver.write(HEADER, &bytes);
    driver.write(STATUS, &[UNTOUCHED]);
}

fn status(driver: &Driver<'_>) -> u8 {
    driver.bytes(STATUS, 1)[0]
}

/// Activated with all features it offers.
fn activated(block: Block, ram: &Arc<GuestRam>, driver: &Driver<'_>) -> Box<dyn ActiveDevice> {
    let (mut activation, _) = activation(ram, &[driver]);
    activation.features = block.features();
    Box::new(block).activate(activation).unwrap()
}

/// Serves until `count` requests are back: io_uring completes in its own time.
fn serve(active: &mut Box<dyn ActiveDevice>, driver: &Driver<'_>, count: usize) -> Result<(), DeviceFault> {
    for _ in 0..2000 {
        active.ready(0)?;
        if driver.used().len() >= count {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{} of {count} requests came back", driver.used().len());
}

fn both_engines(read_only: bool, test: impl Fn(Block, File)) {
    for engine in [Engine::new, Engine::synchronous] {
        let mut file = image();
        let format = Format::open(ImageType::Raw, &mut file, read_only).unwrap();
        test(Block::with_engine(options(read_only), format, engine(file.try_clone().unwrap())), file);
    }
}

/// A disk whose storage answers when somebody writes to the pipe, and the pipe.
fn disk_on_a_pipe() -> (Block, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let engine = Engine::new(File::from(OwnedFd::from(reader)));
    assert!(engine.completion_fd().is_some(), "these tests need a host with io_uring");
    let format = Format::Raw { size: SECTORS * 512, block_bytes: 4096, holes: false };
    (Block::with_engine(options(false), format, engine), writer)
}

/// Nothing has changed the file that [`image`] made.
fn unchanged(mut file: File) {
    let mut content = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut content).unwrap();
    assert!(content.chunks(512).zip(0..SECTORS).all(|(sector, n)| sector == [n as u8 | 1; 512]), "the file changed");
}
