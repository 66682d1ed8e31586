//! States of the model in EVE's words.

use crate::proto::info::{AttestationState as WireAttestation, BootReason as WireBootReason, ZDeviceState, ZSwState};
use holdfast_model::net::InstanceKind;
use holdfast_model::observed::{AppState, AttestationState, BootReason, DeviceState, LoadState};

pub(super) fn device_state(state: DeviceState) -> ZDeviceState {
    match state {
        DeviceState::Booting => ZDeviceState::ZdeviceStateBooting,
        DeviceState::Online => ZDeviceState::ZdeviceStateOnline,
        DeviceState::Rebooting => ZDeviceState::ZdeviceStateRebooting,
        DeviceState::Maintenance => ZDeviceState::ZdeviceStateMaintenanceMode,
        DeviceState::Updating => ZDeviceState::ZdeviceStateBaseosUpdating,
    }
}

pub(super) fn boot_reason(reason: BootReason) -> WireBootReason {
    match reason {
        BootReason::First => WireBootReason::First,
        BootReason::RebootCommand => WireBootReason::RebootCmd,
        BootReason::Update => WireBootReason::Update,
        BootReason::Fallback => WireBootReason::Fallback,
        BootReason::Disconnect => WireBootReason::Disconnect,
        BootReason::Fatal => WireBootReason::Fatal,
        BootReason::Watchdog => WireBootReason::WatchdogHung,
        BootReason::Kernel => WireBootReason::Kernel,
        BootReason::PowerFail => WireBootReason::PowerFail,
        BootReason::Unknown => WireBootReason::Unknown,
        BootReason::VaultFailure => WireBootReason::VaultFailed,
    }
}

pub(super) fn attestation_state(state: AttestationState) -> WireAttestation {
    match state {
        AttestationState::NonceWait => WireAttestation::NonceWait,
        AttestationState::QuoteWait => WireAttestation::TpmQuoteWait,
        AttestationState::EscrowWait => WireAttestation::TpmEscrowWait,
        AttestationState::AttestWait => WireAttestation::AttestWait,
        AttestationState::AttestEscrowWait => WireAttestation::AttestEscrowWait,
        AttestationState::RestartWait => WireAttestation::RestartWait,
        AttestationState::Complete => WireAttestation::Complete,
    }
}

pub(super) fn load_state(state: LoadState) -> ZSwState {
    match state {
        LoadState::Initial => ZSwState::Initial,
        LoadState::Resolving => ZSwState::ResolvingTag,
        LoadState::Downloading => ZSwState::DownloadStarted,
        LoadState::Downloaded => ZSwState::Downloaded,
        LoadState::Verifying => ZSwState::Verifying,
        LoadState::Loaded => ZSwState::Delivered, // what EVE reports of a loaded image, not LOADED
        LoadState::CreatingVolume => ZSwState::CreatingVolume,
        LoadState::VolumeCreated => ZSwState::CreatedVolume,
        LoadState::Error => ZSwState::Error,
    }
}

pub(super) fn app_state(state: AppState) -> ZSwState {
    match state {
        AppState::Initial => ZSwState::Initial,
        AppState::Downloading => ZSwState::DownloadStarted,
        AppState::Loaded => ZSwState::Delivered,
        AppState::CreatingVolume => ZSwState::CreatingVolume,
        AppState::Installed => ZSwState::Installed,
        AppState::AwaitNetworkInstance => ZSwState::Awaitnetworkinstance,
        AppState::StartDelayed => ZSwState::StartDelayed,
        AppState::Booting => ZSwState::Booting,
        AppState::Running => ZSwState::Running,
        AppState::Halting => ZSwState::Halting,
        AppState::Halted => ZSwState::Halted,
        AppState::Restarting => ZSwState::Restarting,
        AppState::Purging => ZSwState::Purging,
        AppState::Error => ZSwState::Error,
    }
}

/// Number of `ZNetworkInstType`.
pub(crate) fn instance_kind(kind: InstanceKind) -> u32 {
    match kind {
        InstanceKind::Switch => 1,
        InstanceKind::Local => 2,
    }
}
