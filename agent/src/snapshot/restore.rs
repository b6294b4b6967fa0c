//! `basalt snapshot restore`: what would be lost is shown before anything is done, and what was replaced is kept until it is confirmed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use basalt_node::{client, lock::OwnerLock};
use basalt_proto::v1::HandOverRequest;
use basalt_snapshots::{RestorePlan, SetName, Swapped};
use serde_json::json;
use tokio::runtime::Handle;

use super::{
    diff::{self, Difference, Opened},
    keeper,
    place::Place,
};
use crate::{
    cli::SnapshotOptions,
    exit::{Failure, Outcome},
    say::{say, tell},
};

/// How long an agent that Kubo started may take to hand over.
const HAND_OVER: Duration = Duration::from_secs(15);

/// Shows what restoring a set means; does it with `yes`.
pub fn restore(
    node: &Path,
    set: &str,
    yes: bool,
    compare: bool,
    options: &SnapshotOptions,
    handle: &Handle,
) -> Outcome {
    let place = Place::find(node, options)?;
    let mut keeper = keeper(&place)?;
    let set = keeper.find(set)?;
    let plan = keeper.plan_restore(&set)?;
    if yes {
        close(&place, handle)?;
    }
    let difference = if compare { compared(&place, &plan.set) } else { Err("it was not asked for".to_owned()) };
    if !options.json {
        preview(&place, &plan, &difference);
    }
    if !yes {
        match options.json {
            true => say!("{}", object(&plan, &difference, None)),
            false => say!("nothing was done: say --yes to do it"),
        }
        return Ok(());
    }
    let swapped = keeper.restore(&plan)?;
    match options.json {
        true => say!("{}", object(&plan, &difference, Some(&swapped))),
        false => said(&swapped),
    }
    Ok(())
}

/// Nobody may have the node open. An agent that Kubo started is asked to hand over; anybody else is the operator's to stop.
fn close(place: &Place, handle: &Handle) -> Outcome {
    let Some(owner) = OwnerLock::owner(&place.node) else { return Ok(()) };
    let ask = async {
        let mut admin = client::admin(&place.node, &place.config.node.sockets).await?;
        let by = format!("basalt snapshot restore, pid {}", std::process::id());
        admin.hand_over(HandOverRequest { force: false, by }).await.map_err(|status| client::error(&status))
    };
    let asked = handle.block_on(ask);
    let began = Instant::now();
    while asked.is_ok() && began.elapsed() < HAND_OVER {
        if OwnerLock::owner(&place.node).is_none() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let why = asked.err().map_or_else(String::new, |err| format!(" ({err})"));
    Err(Failure::new(format!(
        "node {} is open ({owner}){why}, and a node in use is not restored: stop Kubo (`ipfs shutdown`) and the agent (SIGTERM), then restore",
        place.node.display()
    )))
}

/// The difference from the set to the node as it is, or why there is none.
fn compared(place: &Place, set: &SetName) -> Result<Difference, String> {
    let compare = || -> Outcome<Difference> {
        let new = Opened::live(place, "basalt snapshot restore")?;
        let old = Opened::set(place, set, "basalt snapshot restore")?;
        let difference = diff::compare(&old.node, &new.node, &mut |_, _| {});
        old.close()?;
        new.close()?;
        difference
    };
    compare().map_err(|failure| failure.message)
}

fn preview(place: &Place, plan: &RestorePlan, difference: &Result<Difference, String>) {
    say!("restore    {}, taken {}", plan.set, plan.set.time());
    for top in &plan.tops {
        say!("replaces   {top} and what lies in it");
    }
    match difference {
        Ok(difference) => {
            say!(
                "lost then  {} blocks, {} pins that the node has now and the set hasn't",
                difference.blocks_added,
                difference.pins_added.len()
            );
            difference.pins_added.iter().take(20).for_each(|pin| say!("             pin {pin}"));
            say!(
                "back then  {} blocks, {} pins that the set has and the node hasn't",
                difference.blocks_removed,
                difference.pins_removed.len()
            );
            say!("           {} other keys differ (MFS root, names)", difference.keys_changed);
        }
        Err(why) => say!("lost then  not known: {why}"),
    }
    if !plan.younger.is_empty() {
        say!("aside      {} younger sets, as long as what is replaced is kept", plan.younger.len());
    }
    place.lacks.iter().for_each(|lacks| say!("lacks      {lacks}"));
}

fn said(swapped: &Swapped) {
    let aside = &swapped.aside;
    say!("the node is {} again; start what served it", aside.set);
    for top in &aside.tops {
        say!("what was replaced is {top}{}", aside.suffix);
    }
    say!("if it is right:  basalt snapshot restore --confirm {} --yes   (destroys what was replaced)", aside.id);
    say!("if it is not:    basalt snapshot restore --undo {} --yes      (puts it back)", aside.id);
    swapped.notes.iter().for_each(|note| tell!("basalt: {note}"));
}

fn object(plan: &RestorePlan, difference: &Result<Difference, String>, swapped: Option<&Swapped>) -> serde_json::Value {
    json!({
        "set": plan.set.as_str(),
        "replaces": plan.tops.iter().map(basalt_zfs::Dataset::as_str).collect::<Vec<_>>(),
        "younger": plan.younger.iter().map(SetName::as_str).collect::<Vec<_>>(),
        "difference": difference.as_ref().ok().map(|difference| diff::object(&plan.set, None, difference)),
        "done": swapped.is_some(),
        "id": swapped.map(|swapped| &swapped.aside.id),
        "aside": swapped.map(|swapped| swapped.aside.tops.iter().map(|top| format!("{top}{}", swapped.aside.suffix)).collect::<Vec<_>>()),
        "notes": swapped.map(|swapped| &swapped.notes),
    })
}

/// Destroys what a restore has replaced.
pub fn confirm(node: &Path, id: &str, yes: bool, options: &SnapshotOptions) -> Outcome {
    let place = Place::find(node, options)?;
    let mut keeper = keeper(&place)?;
    let id = &keeper.aside(id)?.id;
    let goes = keeper.plan_confirm(id)?;
    if yes {
        keeper.confirm_restore(id)?;
    }
    if options.json {
        say!("{}", json!({ "id": id, "destroys": goes, "done": yes }));
        return Ok(());
    }
    goes.iter().for_each(|name| say!("destroy  {name}"));
    match yes {
        true => say!("restore {id} is confirmed, and what it replaced is gone"),
        false => say!("nothing was done: say --yes to do it"),
    }
    Ok(())
}

/// Puts back what a restore has replaced.
pub fn undo(node: &Path, id: &str, yes: bool, options: &SnapshotOptions, handle: &Handle) -> Outcome {
    let place = Place::find(node, options)?;
    let mut keeper = keeper(&place)?;
    let aside = keeper.aside(id)?;
    let id = aside.id.as_str();
    if !yes {
        match options.json {
            true => say!("{}", json!({ "id": id, "puts_back": aside.tops, "done": false })),
            false => say!(
                "{} would take the places of {}; nothing was done: say --yes to do it",
                aside.suffix,
                aside.tops.join(", ")
            ),
        }
        return Ok(());
    }
    close(&place, handle)?;
    let swapped = keeper.undo_restore(id)?;
    match options.json {
        true => say!("{}", json!({ "id": id, "puts_back": swapped.aside.tops, "done": true })),
        false => {
            say!(
                "what restore {id} had replaced is the node again; what was in its place is now {}",
                swapped.aside.suffix
            );
            say!("`--confirm {id}` destroys that, `--undo {id}` swaps once more");
        }
    }
    Ok(())
}
