//! Taking a volume over: a new epoch comes to exist, and notices if it is not alone.
//!
//! The ticket is begun; root slot 0; root slot 1; the ticket is completed; the epoch's first record. Each
//! is flushed before the next one, and nothing is served before the last (rule R2).
//!
//! Without the lock on the device another node may be claiming too. After each of these steps the
//! claimant reads all tickets and roots again. If anything behind the root that it starts from has
//! changed, or its own writes are not there, it gives up; its roots do not count then, for its ticket
//! is not complete. Of two claimants that started from the same root, each sees the other's ticket
//! unless it had looked before the other one wrote it; then the other one sees its roots. So one of
//! them at most serves, as long as what is not seen has not been written: a claimant that stands still
//! after its last look, for as long as a whole take-over takes, is what only a lease can exclude.

use blockdev::IoClass;

use super::Volume;
use super::recover::Recovered;
use super::slots::superseded;
use crate::error::{FsError, Result};
use crate::format::{Change, RootSlot, Ticket};
use crate::mutants::{self, Mutant};
use crate::types::Epoch;

impl Volume {
    /// Makes the new epoch exist; see the module.
    pub(super) fn claim(&self, claim: RootSlot, recovered: &Recovered) -> Result<()> {
        let ticket = self.own_ticket(false);
        self.write_ticket(&ticket)?;
        self.check_alone(recovered, &ticket)?;
        self.write_slot(&claim)?;
        self.check_alone(recovered, &ticket)?;
        let sb = &self.superblock;
        let second = RootSlot::address(sb.slots_start, sb.slot_rows, self.epoch, 1);
        let buf = claim.encode(&sb.uuid, second)?;
        self.device.write_at(second.offset(), buf, false, IoClass::Log)?;
        self.flush_or_stop()?;
        self.check_alone(recovered, &ticket)?;
        let ticket = self.own_ticket(true);
        self.write_ticket(&ticket)?;
        self.check_alone(recovered, &ticket)?;
        if mutants::active(Mutant::NoEpochRecord) {
            return Ok(());
        }
        let lsn = self.meta.apply(
            vec![Change::EpochStart {
                previous: recovered.slot.epoch,
                cut_lsn: recovered.end.lsn,
                cut_crc: recovered.end.crc,
            }],
            0,
        )?;
        self.commit_to(lsn)?;
        self.check_alone(recovered, &ticket)?;
        self.counters.epoch_changes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    fn own_ticket(&self, complete: bool) -> Ticket {
        Ticket { epoch: self.epoch, claim: self.claim_id, node_id: self.options.node_id, complete }
    }

    fn write_ticket(&self, ticket: &Ticket) -> Result<()> {
        let sb = &self.superblock;
        let own = Ticket::address(sb.slots_start, sb.slot_rows, self.epoch);
        self.device.write_at(own.offset(), ticket.encode(&sb.uuid, own), false, IoClass::Log)?;
        self.flush_or_stop()
    }

    fn check_alone(&self, recovered: &Recovered, ticket: &Ticket) -> Result<()> {
        let device = self.device.as_ref();
        if device.capabilities().exclusive
            || recovered.rows.still_alone(device, &self.superblock, recovered.slot.epoch, ticket)?
        {
            return Ok(());
        }
        Err(FsError::Volume(format!(
            "{}: another node is taking the volume over at this moment; mount it on one node only",
            device.name()
        )))
    }

    /// The last root of an epoch without the lock on the device: nothing is under way any more. With the
    /// lock, its release says so.
    pub(super) fn note_end(&self) -> Result<()> {
        if self.device.capabilities().exclusive || self.space.alloc.quarantined_blocks() > 0 {
            return Ok(());
        }
        let mut state = self.checkpointer.lock();
        let slot = RootSlot { seq: state.slot.seq + 1, ended: true, ..state.slot.clone() };
        self.write_slot(&slot)?;
        state.slot = slot;
        Ok(())
    }

    /// Before a root is written: nobody has taken the volume over meanwhile. Ends the epoch if so.
    pub(super) fn check_not_superseded(&self) -> Result<()> {
        let device = self.device.as_ref();
        if device.capabilities().exclusive {
            return Ok(());
        }
        match superseded(device, &self.superblock, &self.own_ticket(true))? {
            None => Ok(()),
            Some(Epoch(by)) => {
                let reason = format!("another node has taken the volume over, in epoch {by}");
                self.commit.fail(&reason);
                Err(FsError::EpochEnded(reason))
            }
        }
    }
}
