//! PID 1: the static program in the UKI. It opens the slot, starts `node`, supervises every process, powers off.
pub mod clock;
pub mod supervisor;
