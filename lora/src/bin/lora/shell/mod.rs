//! How the command speaks with the shell: flags of all commands, what is printed, what is written, how it ends.

pub mod common;
pub mod end;
mod flags;
pub mod heat;
pub mod output;
pub mod print;
pub mod table;
