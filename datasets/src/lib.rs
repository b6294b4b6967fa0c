//! A node's ZFS datasets: declared in one file, planned, applied, and compared with what is there.
//!
//! - [`Layout`] is what is declared: which datasets a node has ([`Member`], by [`Role`]), where they are mounted, and their properties. It is
//!   read from [`FILE_NAME`] in the node's folder, the mountpoint of the first of them.
//! - [`look`] gives the [`Facts`]: what is there.
//! - [`plan`] compares the two: a pure function. Its [`Plan`] is shown before it is applied, and is what drift is explained by.
//! - [`apply`] does its steps over [`basalt_zfs::Zfs`]; what needs root goes through [`Hands`]. Killed anywhere, the next one goes on from there.
//!
//! - [`helper`] is the small program that mounts, creates and loads keys for an agent that isn't root; [`bare`] seals the folders below mounts.
//!
//! Nothing here destroys, renames or empties a dataset.

mod apply;
pub mod bare;
mod facts;
pub mod helper;
mod layout;
mod plan;
mod property;

pub use apply::{Hands, Helper, Own, Root, Stopped, apply, unfinished};
pub use facts::{Facts, Folder, Found, look};
pub use layout::{
    Declaration, Encryption, FILE_NAME, Layout, LayoutError, Member, RESERVE_PROPERTY, Repo, Role, SHARDS_MAX,
};
pub use plan::{APPLYING_PROPERTY, NODE_PROPERTY, Note, Obstacle, Plan, Planned, ROLE_PROPERTY, Step, plan};
