//! A device under QEMU: TPM, networks, power cuts
