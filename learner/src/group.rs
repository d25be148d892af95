//! The ranks of one learner: meeting over the coordinator, agreeing on what happened, and leaving together.

use crate::collective::{Collective, OneRank, Patience};
use crate::connection::Connection;
use crate::error::LearnerError;
use crate::options::Options;
use crate::share::Share;
use quorum_core::config::RunConfig;
use quorum_proto::v1;

/// This rank and its way to the others.
pub struct Group {
    collective: Box<dyn Collective>,
    share: Share,
}

/// How a rank's part went, first byte of what it tells the others.
const WENT_WELL: u8 = 0;
const FAILED: u8 = 1;

impl Group {
    /// A group over ranks that are connected already.
    pub fn new(collective: Box<dyn Collective>, lanes: usize) -> Self {
        let share = Share { rank: collective.rank(), world: collective.world().max(1), lanes: lanes.max(1) };
        Self { collective, share }
    }

    /// The group of a learner of one rank.
    pub fn alone(config: &RunConfig) -> Self {
        Self::new(Box::new(OneRank), config.learner.lanes as usize)
    }

    /// Meets the other ranks of the run, if it has several.
    ///
    /// # Errors
    /// Ranks do not come in time (they are named), the run has another number of ranks, or this build has no transport between ranks.
    pub fn form(connection: &Connection, options: &Options) -> Result<Self, LearnerError> {
        let config = connection.session.config.clone();
        let place = options.place()?;
        if place.world != config.learner.ranks {
            return Err(LearnerError::World { asked: place.world, ranks: config.learner.ranks });
        }
        if place.world == 1 {
            return Ok(Self::alone(&config));
        }
        let transport = options.way()?;
        let mut request = v1::FormGroupRequest {
            caller: Some(connection.session.caller("")),
            rank: place.rank,
            world: place.world,
            collective_id: bytes::Bytes::new(),
            transport: transport.to_string(),
            wait_seconds: 0.0,
        };
        if place.rank == 0 {
            request.collective_id = transport.new_id()?.into();
        }
        let reply = connection.form_group(&request)?;
        tracing::info!(rank = place.rank, generation = reply.generation, members = ?reply.members, %transport, "group formed");
        let patience = Patience { deadline: options.group_patience(), interrupt: connection.interrupt() };
        let collective = transport.connect(&reply.collective_id, place, options.device_index(), patience)?;
        let mut group = Self::new(collective, config.learner.lanes as usize);
        if let Err(error) = group.same("where to begin", &beginning(connection)) {
            group.abort(&error.to_string());
            return Err(error);
        }
        Ok(group)
    }

    /// Place of this rank.
    pub fn share(&self) -> Share {
        self.share
    }

    /// Whether this rank speaks to the coordinator for all.
    pub fn leads(&self) -> bool {
        self.share.rank == 0
    }

    /// The way to the other ranks.
    pub fn ranks(&mut self) -> &mut dyn Collective {
        self.collective.as_mut()
    }

    /// Tells all ranks how this one's part of `what` went; their answers, by rank, if it went well everywhere.
    ///
    /// # Errors
    /// Names the first rank that failed, with its reason; the same error on every rank that did not fail itself.
    pub fn agree(
        &mut self,
        what: &'static str,
        mine: Result<Vec<u8>, LearnerError>,
    ) -> Result<Vec<Vec<u8>>, LearnerError> {
        if self.share.world == 1 {
            return mine.map(|bytes| vec![bytes]);
        }
        let message = match &mine {
            Ok(bytes) => [&[WENT_WELL], bytes.as_slice()].concat(),
            Err(error) => [&[FAILED], error.to_string().as_bytes()].concat(),
        };
        let told = self.collective.all_gather_bytes(&message);
        mine?;
        let told = told.map_err(|source| LearnerError::Group { what, source })?;
        let open = |(rank, message): (usize, Vec<u8>)| match message.split_first() {
            Some((&WENT_WELL, bytes)) => Ok(bytes.to_vec()),
            Some((_, reason)) => {
                Err(LearnerError::Peer { rank, what, reason: String::from_utf8_lossy(reason).into_owned() })
            }
            None => Err(LearnerError::Peer { rank, what, reason: "it said nothing".into() }),
        };
        told.into_iter().enumerate().map(open).collect()
    }

    /// Checks that all ranks hold the same.
    ///
    /// # Errors
    /// Says which rank holds what.
    pub fn same(&mut self, what: &'static str, mine: &str) -> Result<(), LearnerError> {
        let all = self.agree(what, Ok(mine.as_bytes().to_vec()))?;
        match all.iter().enumerate().find(|(_, other)| other.as_slice() != mine.as_bytes()) {
            None => Ok(()),
            Some((rank, other)) => {
                let (mine, other) = (mine.to_owned(), String::from_utf8_lossy(other).into_owned());
                Err(LearnerError::Apart { what, own: self.share.rank, mine, rank, other })
            }
        }
    }

    /// Whether a new group can be formed in this process.
    pub fn can_form_again(&self) -> bool {
        self.collective.can_form_again()
    }

    /// Ends the group after an error, so that no rank waits for this one. With MPI it ends the process.
    pub fn abort(&mut self, why: &str) {
        self.collective.abort(why);
    }
}

/// What every rank must have been told alike when it joined.
fn beginning(connection: &Connection) -> String {
    let start = connection.session.reply.learner.clone().unwrap_or_default();
    let older: Vec<String> = start.older.into_iter().map(|c| c.name).collect();
    format!(
        "checkpoint `{}` (older: {}), {} steps committed",
        start.checkpoint,
        older.join(", "),
        start.committed_steps
    )
}
