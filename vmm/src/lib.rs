//! The virtual machine monitor: one process per app
