//! `basalt verify`, `flush` and `reclaim`: what an operator asks of a node.

use std::path::Path;

use basalt_proto::v1;
use serde_json::json;

use crate::{
    access::Access,
    exit::{Failure, Outcome},
    progress::{self, Progress, Unit},
    say::say,
};

/// Damaged keys that are named one by one without --json.
const NAMED_MAX: usize = 1000;

/// Reads everything back.
pub async fn verify(node: &Path, hash: bool, as_json: bool) -> Outcome {
    let mut access = Access::open_for_reading(node, "basalt verify").await?;
    let outcome = report(&mut access, hash).await;
    access.close().await?;
    let (last, damaged) = outcome?;
    if as_json {
        let damaged: Vec<_> =
            damaged.iter().map(|one| json!({ "key": one.key, "cid": one.cid, "reason": one.reason })).collect();
        say!(
            "{}",
            json!({ "blocks": last.blocks_done, "bytes": last.bytes_done, "keys": last.keys_done, "hashed": hash, "damaged": damaged })
        );
    } else {
        for one in damaged.iter().take(NAMED_MAX) {
            let name = if one.cid.is_empty() { &one.key } else { &one.cid };
            say!("damaged: {name}: {}", one.reason);
        }
        say!(
            "verified {} blocks, {}, and {} other keys{}: {} damaged",
            last.blocks_done,
            progress::bytes(last.bytes_done),
            last.keys_done,
            if hash { ", hashed" } else { "" },
            damaged.len(),
        );
    }
    match damaged.len() {
        0 => Ok(()),
        n => Err(Failure::new(format!(
            "{n} damaged: let Kubo fetch them again (`ipfs block get CID`), or put them from a replica or backup (`ipfs block put`)"
        ))),
    }
}

type Report = (v1::VerifyProgress, Vec<v1::verify_progress::Damage>);

async fn report(access: &mut Access, hash: bool) -> Outcome<Report> {
    let mut stream = access.admin().verify(v1::VerifyRequest { hash }).await?.into_inner();
    let mut last = v1::VerifyProgress::default();
    let mut damaged = Vec::new();
    let mut bar: Option<Progress> = None;
    while let Some(mut step) = stream.message().await? {
        damaged.append(&mut step.damaged);
        bar.get_or_insert_with(|| Progress::begin("verify", Unit::Things("blocks"), Some(step.blocks_all)))
            .at(step.blocks_done);
        last = step;
    }
    if let Some(bar) = bar {
        bar.end();
    }
    match last.complete {
        true => Ok((last, damaged)),
        false => Err(Failure::new(format!(
            "the node stopped verifying after {} blocks ({} damaged so far): look at its log",
            last.blocks_done,
            damaged.len()
        ))),
    }
}

/// Makes all that was acknowledged durable.
pub async fn flush(node: &Path, as_json: bool) -> Outcome {
    let mut access = Access::served(node).await?;
    access.admin().flush(v1::FlushRequest {}).await?;
    match as_json {
        true => say!("{}", json!({ "durable": true })),
        false => say!("all that was acknowledged is on stable storage"),
    }
    Ok(())
}

/// Gives back what space can be given back now.
pub async fn reclaim(node: &Path, as_json: bool) -> Outcome {
    let mut access = Access::open_for_writing(node, "basalt reclaim").await?;
    let outcome = access.admin().reclaim(v1::ReclaimRequest {}).await;
    access.close().await?;
    let answer = outcome?.into_inner();
    match as_json {
        true => say!("{}", json!({ "freed_bytes": answer.freed_bytes, "segments": answer.segments })),
        false => say!("{} given back, {} segments less", progress::bytes(answer.freed_bytes), answer.segments),
    }
    Ok(())
}
