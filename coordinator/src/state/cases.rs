//! Single cases of the state machine.

use super::props::{LEARNER, RANKS, digest, meeting, plan};
use super::*;
use quorum_proto::v1::Role;

fn ready() -> RunState {
    let mut s = RunState::new(Plan { questions: 0, ..plan() }, Recovered { epoch: 1, ..Recovered::default() });
    s.join(0.0, LEARNER, Member::new(Role::Learner, 0.0)).unwrap();
    s.published(0.0, 0, &digest(0));
    s.join(0.0, "w0", Member::new(Role::RolloutWorker, 0.0)).unwrap();
    s
}

#[test]
fn an_overdue_lease_goes_to_another_worker_and_its_first_holder_is_told() {
    let mut s = ready();
    let first = s.grant(0.0, "w0", 1).unwrap()[0];
    s.touch(9.0, "w0").unwrap();
    s.touch(9.0, LEARNER).unwrap();
    assert_eq!(s.tick(10.5).deadline, 1);
    assert_eq!(s.heartbeat(10.5, "w0", 0, 0.0, 0).unwrap().cancelled, [first.lease]);
    s.join(10.5, "w1", Member::new(Role::RolloutWorker, 10.5)).unwrap();
    let second = s.grant(10.5, "w1", 1).unwrap()[0];
    assert_eq!(second.work, first.work);
    assert!(second.fence > first.fence);
    let late = s.submit(10.6, "w0", first.lease, first.fence, 0).unwrap();
    assert!(matches!(late, Admission::StaleFence(_)), "{late:?}");
    assert_eq!(s.submit(10.7, "w1", second.lease, second.fence, 0).unwrap(), Admission::Record);
    assert_eq!(s.submit(10.7, "w1", second.lease, second.fence, 0).unwrap(), Admission::Duplicate { durable: false });
    assert!(s.recorded(10.8, second.work));
    assert_eq!(s.submit(10.9, "w1", second.lease, second.fence, 0).unwrap(), Admission::Duplicate { durable: true });
}

#[test]
fn a_prompt_is_given_up_only_when_two_workers_failed_or_there_is_but_one() {
    let mut s = ready();
    s.join(0.0, "w1", Member::new(Role::RolloutWorker, 0.0)).unwrap();
    let first = s.grant(0.0, "w0", 1).unwrap()[0];
    assert_eq!(s.fail(0.0, "w0", first.lease, first.fence, "no image").unwrap(), Failure::Requeued);
    // Not to the same worker again while there is another one.
    let others = s.grant(0.0, "w0", 9).unwrap();
    assert_eq!(others.len(), 3);
    assert!(others.iter().all(|g| g.work != first.work));
    let second = s.grant(0.0, "w1", 9).unwrap()[0];
    assert_eq!(second.work, first.work);
    let given_up = s.fail(0.0, "w1", second.lease, second.fence, "no image").unwrap();
    assert_eq!(given_up, Failure::Quarantine(vec!["no image".into(), "no image".into()]));

    let mut s = ready();
    for expected in [Failure::Requeued, Failure::Quarantine(vec!["bad".into(), "bad".into()])] {
        let g = s.grant(0.0, "w0", 1).unwrap()[0];
        assert_eq!(s.fail(0.0, "w0", g.lease, g.fence, "bad").unwrap(), expected);
    }
}

#[test]
fn whoever_is_silent_is_lost_with_its_process() {
    let mut s = ready();
    s.join(0.0, "w7", Member { pid: 4711, ..Member::new(Role::RolloutWorker, 0.0) }).unwrap();
    s.touch(4.0, "w0").unwrap();
    s.touch(4.0, LEARNER).unwrap();
    assert!(s.tick(5.0).members.is_empty());
    // If nobody could be heard, nobody was silent.
    s.forgive(2.0);
    assert!(s.tick(6.5).members.is_empty());
    assert_eq!(s.tick(7.5).members, [("w7".to_owned(), 4711)]);
}

#[test]
fn whoever_is_late_is_named() {
    let s = RunState::new(plan(), Recovered::default());
    assert!(s.late(59.0, &[]).is_none());
    assert!(s.late(61.0, &[]).unwrap().contains("start one with `learner"));
    let children = [("learner-0".to_owned(), 71), ("worker-0".to_owned(), 72)];
    assert!(s.late(61.0, &children).unwrap().contains("late: `learner-0` (process 71); see its log"));
    let mut s = ready();
    s.remove(1.0, "w0");
    assert!(s.late(62.0, &[]).unwrap().contains("no rollout worker"));
    assert!(s.late(62.0, &children).unwrap().contains("late: `worker-0` (process 72)"));
    let mut s = ready();
    s.join(0.0, "w9", Member { pid: 99, ..Member::new(Role::RolloutWorker, 0.0) }).unwrap();
    assert!(s.late(51.0, &[]).unwrap().contains("`w0`, `w9` (process 99), none asks for work"));
    s.grant(0.0, "w9", 1).unwrap();
    assert!(s.late(51.0, &[]).unwrap().contains("late: `w9` (process 99)"));
    let mut s = ready();
    for g in s.grant(0.0, "w0", 9).unwrap() {
        s.submit(0.0, "w0", g.lease, g.fence, 0).unwrap();
        s.recorded(0.0, g.work);
    }
    assert_eq!(s.phase(), Phase::Train { step: 0 });
    assert!(s.late(61.0, &[]).unwrap().contains("learner `l`"));
}

fn group(ranks: usize) -> RunState {
    let plan = Plan { questions: 0, ranks: ranks as u32, ..plan() };
    let mut s = RunState::new(plan, Recovered { epoch: 1, ..Recovered::default() });
    for (rank, id) in RANKS.iter().enumerate().take(ranks) {
        rejoin(&mut s, 0.0, rank);
        assert!(s.touch_learner(0.0, id, 0).is_err(), "not before the group has met");
    }
    s
}

fn rejoin(s: &mut RunState, now: f64, rank: usize) {
    let member = Member { rank: rank as u32, pid: 100 + rank as u32, ..Member::new(Role::Learner, now) };
    s.join(now, RANKS[rank], member).unwrap();
}

#[test]
fn a_group_meets_and_a_lost_rank_fences_the_others() {
    let mut s = group(3);
    let ask = |s: &mut RunState, rank: usize| s.form_group(1.0, RANKS[rank], meeting(rank, 3)).unwrap();
    assert_eq!(ask(&mut s, 1), Formation::Pending { missing: vec![0, 2] });
    assert_eq!(ask(&mut s, 0), Formation::Pending { missing: vec![2] });
    let ready = ask(&mut s, 2);
    assert!(matches!(&ready, Formation::Ready { members, .. } if members == &RANKS), "{ready:?}");
    assert_eq!(ask(&mut s, 1), ready, "asking again changes nothing");
    RANKS.iter().for_each(|id| s.touch_learner(1.0, id, 0).unwrap());
    let e = s.touch_first(1.0, RANKS[2]).unwrap_err();
    assert!(matches!(&e, Refusal::Forbidden(r) if r.contains("rank 2") && r.contains("rank 0")), "{e:?}");

    let before = s.generation();
    s.remove(2.0, RANKS[1]);
    assert!(s.generation() > before && !s.group_formed());
    for id in RANKS {
        assert!(matches!(s.heartbeat(2.0, id, 0, 0.0, 0), Err(Refusal::Rejoin(_))), "{id} must join again");
    }
    (0..3).for_each(|rank| rejoin(&mut s, 3.0, rank));
    (0..2).for_each(|rank| drop(ask(&mut s, rank)));
    assert!(matches!(ask(&mut s, 2), Formation::Ready { .. }));
}

#[test]
fn a_rank_that_cannot_take_part_is_told_why() {
    let mut s = group(2);
    s.form_group(0.0, RANKS[0], meeting(0, 2)).unwrap();
    let refused = |s: &mut RunState, m: Meeting| match s.form_group(0.0, RANKS[1], m).unwrap() {
        Formation::Refused(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(&mut s, meeting(0, 2)).contains("joined as rank 1"));
    assert!(refused(&mut s, meeting(1, 4)).contains("learner.ranks = 2"));
    let other = Meeting { transport: "mpi".into(), ..meeting(1, 2) };
    assert!(refused(&mut s, other).contains("transport `mpi`"));
    let member = |rank| Member { rank, ..Member::new(Role::Learner, 0.0) };
    let e = s.join(0.0, "l9", member(2)).unwrap_err();
    assert!(matches!(&e, Refusal::Forbidden(r) if r.contains("no learner rank 2")), "{e:?}");
    let e = s.join(0.0, "l9", member(1)).unwrap_err();
    assert!(matches!(&e, Refusal::Forbidden(r) if r.contains("`l1`") && r.contains("not lost")), "{e:?}");
    s.remove(0.0, RANKS[1]);
    s.join(0.0, "l9", member(1)).unwrap();
}

#[test]
fn missing_and_slow_ranks_are_named() {
    let mut s = group(3);
    s.form_group(0.0, RANKS[1], meeting(1, 3)).unwrap();
    assert!(s.late(59.0, &[]).is_none());
    let late = s.late(61.0, &[]).unwrap();
    assert!(late.contains("learner ranks 0, 2 of 3") && late.contains("mpirun -n 3"), "{late}");
    let late = s.late(61.0, &[("learner".to_owned(), 71)]).unwrap();
    assert!(late.contains("late: `learner` (process 71)"), "{late}");
    [0, 2].iter().for_each(|&rank| drop(s.form_group(1.0, RANKS[rank], meeting(rank, 3)).unwrap()));
    s.published(1.0, 0, &digest(0));
    s.join(0.0, "w0", Member::new(Role::RolloutWorker, 0.0)).unwrap();
    for g in s.grant(1.0, "w0", 9).unwrap() {
        s.submit(1.0, "w0", g.lease, g.fence, 0).unwrap();
        s.recorded(1.0, g.work);
    }
    [0, 2].iter().for_each(|&rank| s.touch_learner(1.0, RANKS[rank], 1).unwrap());
    let late = s.late(62.0, &[]).unwrap();
    assert!(late.contains("`l1` (process 101)") && !late.contains("`l2`"), "{late}");
}

#[test]
fn ranks_leave_a_learned_run_one_by_one() {
    let mut s = group(2);
    (0..2).for_each(|rank| drop(s.form_group(0.0, RANKS[rank], meeting(rank, 2)).unwrap()));
    s.join(0.0, "w0", Member::new(Role::RolloutWorker, 0.0)).unwrap();
    s.published(0.0, 0, &digest(0));
    for step in 0..3 {
        for g in s.grant(0.0, "w0", 9).unwrap() {
            s.submit(0.0, "w0", g.lease, g.fence, step).unwrap();
            s.recorded(0.0, g.work);
        }
        s.published(0.0, step + 1, &digest(step + 1));
        s.commit(0.0, step, &digest(step + 1));
    }
    s.remove(0.0, RANKS[1]);
    s.touch_learner(0.0, RANKS[0], 3).unwrap();
    s.remove(0.0, RANKS[0]);
}
