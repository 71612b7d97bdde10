/* The protocol of cleanups, as far as several act at once. README.md maps each step to its function.
 *
 * A project has a file of its own in each of two buckets, and one that is its own or its neighbour's.
 * A step is one transaction, one request, or one moment at which somebody looks: whoever acts can stop
 * between any two of them. check.py sets WITHOUT_<RULE> to 1 to remove a rule, and else to 0. */
#define OWN 0
#define SHARED 1
#define OTHER 2                 /* in the other bucket */
/* Cleanups of the first deletion, its follow-up check, the second deletion; in the other bucket. */
#define FIRST 0
#define FOLLOW_UP 1
#define SECOND 2
#define ELSEWHERE 3
#define deletion(c) (c == SECOND -> 1 : 0)
/* Status of a cleanup; nothing depends on whether it is clean, undone, cancelled or superseded. */
mtype = { PENDING, RUNNING, BLOCKED, ENDED };
#define is_open(c) (status[c] != 0 && status[c] != ENDED)
/* Its step. FIGURES is the plan at the beginning of a hold, which only meets the limits. */
mtype = { FIGURES, PLAN, DELETE, VERIFY };
/* Outcome of an item. ROW_ONLY: the plan's listing did not show it. CALLED: sent, and no answer. */
mtype = { TO_DELETE, ROW_ONLY, CALLED, ANSWERED, NOT_LISTED, KEPT, GONE };
#define item(c, f) items[2 * (c) + f]
#define is_unsent(c, f) (item(c, f) == TO_DELETE || item(c, f) == ROW_ONLY)
#define is_unconfirmed(c, f) (item(c, f) == CALLED || item(c, f) == NOT_LISTED)
#define is_unsettled(c, f) (is_unconfirmed(c, f) || item(c, f) == ANSWERED)
/* Of a hold: the database's clock can be AHEAD. Of KnownProject.kept_for. Of the neighbour. */
mtype = { HELD, AHEAD, OVER, UNDO, GIVEN_UP, TAKING, DEAD };

/* The database. */
bool row = true, paused, snapshot[2], cancelled[2], first_request[4], marked[3], approved[3];
mtype kept_for, hold[2], status[4], step[3], items[6], neighbour = HELD;
byte deletions, lease[3];
/* The bucket: OWN is of the first or the second life of the id. Requests without an answer. */
byte there[3] = 1, life = 1, version[3];
byte flying[3], stray;          /* 1 OWN, 2 SHARED, 3 both: by worker, or nobody waits for it */
/* What goes wrong: one listing, and of the rest so much. */
bool may_lie = true, is_wrong_bucket;
byte trouble = 1;
bool late[3];                   /* by worker: it sleeps past its lease */

#define current (deletions - 1)
#define is_current(d) (!row && current == d)
#define no_request_yet (deletions == 1 && !first_request[FIRST] && !first_request[FOLLOW_UP] \
    && (WITHOUT_BOTH_BUCKETS || !first_request[ELSEWHERE]) || deletions == 2 && !first_request[SECOND])
#define is_any_open (deletions == 1 && (is_open(FIRST) || is_open(FOLLOW_UP) || is_open(ELSEWHERE)) \
    || deletions == 2 && is_open(SECOND))
#define is_leased(c) (lease[c] != 0 && !late[lease[c]])
#define has_lease(c) (status[c] == RUNNING && lease[c] == me && !late[me])
#define is_free(c) (status[c] == PENDING || !WITHOUT_TAKEOVER && status[c] == RUNNING && !is_leased(c))
#define is_due(c) (is_free(c) && !is_leased(FIRST) && !is_leased(FOLLOW_UP) && !is_leased(SECOND) \
    && (step[c] != PLAN || hold[deletion(c)] != HELD || approved[c]) \
    && (step[c] != DELETE || cancelled[deletion(c)] || hold[deletion(c)] == OVER && !paused))
#define may_send(c, d) ((WITHOUT_LEASE || has_lease(c)) && (WITHOUT_PAUSE || !paused) \
    && (WITHOUT_CANCEL || !cancelled[d]) && (WITHOUT_HOLD || hold[d] == OVER || WITHOUT_CLOCK && hold[d] == AHEAD))
/* An upload to OWN is refused while a deletion of the key is under way, or may be. */
#define is_marked(c) (marked[c] || is_open(c) && is_unsettled(c, OWN))
#define is_locked (!WITHOUT_LOCK && (is_marked(FIRST) || is_marked(FOLLOW_UP) || is_marked(SECOND)))
#define is_unanswered (!WITHOUT_TIMEOUT && (stray & 1 || flying[1] & 1 || flying[2] & 1))

#define when(condition, what) if :: condition -> what :: else fi
#define is_of_this_life(f) (there[f] && (f == OWN -> there[OWN] == life : life == 1))
inline arrive(f, is_neighbours) {
    assert(!is_of_this_life(f) || !row && hold[current] == OVER); /* no file of a living or held project goes */
    assert(!there[f] || f != SHARED || is_neighbours || neighbour == DEAD); /* nor one of a living or held neighbour */
    there[f] = 0
}
inline arrive_all(calls) {
    when(calls & 1, arrive(OWN, false)); when(calls & 2, arrive(SHARED, false)); calls = 0
}
#define end_turn(new_status) status[c] = new_status; goto rest
#define with_lease(what) if :: has_lease(c) -> what :: else -> goto rest fi
#define for_each_file(condition, what) for (f : OWN .. SHARED) { when(condition, what) }
inline block() {                /* Uploads go on, but to keys to which a request may be under way. */
    for_each_file(item(c, f) == ANSWERED || item(c, f) == NOT_LISTED, item(c, f) = TO_DELETE);
    step[c] = (step[c] == VERIFY -> DELETE : step[c]);
    end_turn(BLOCKED)
}
inline close() {
    when(c == FIRST, status[FOLLOW_UP] = PENDING; step[FOLLOW_UP] = PLAN);
    end_turn(ENDED)
}
#define keep_unsent() for_each_file(is_unsent(c, f), item(c, f) = KEPT)
inline forget(c) {              /* Nothing depends on it any more: so there are fewer states. */
    item(c, OWN) = 0; item(c, SHARED) = 0; approved[c] = false; step[c] = 0; version[c] = 0
}
/* A listing can omit a file, or show another bucket, as those after it until one is right. */
inline list_files() {
    if
    :: seen[OWN] = there[OWN]; seen[SHARED] = there[SHARED]; is_wrong_bucket = false
    :: may_lie && there[OWN] -> may_lie = false; seen[SHARED] = there[SHARED]
    :: may_lie && there[SHARED] -> may_lie = false; seen[OWN] = there[OWN]
    :: may_lie && (there[OWN] || there[SHARED]) -> may_lie = false; is_wrong_bucket = true
    :: is_wrong_bucket
    fi
}
/* The marker's listing, which is right again or not. Here the worker may die. */
inline check_marker() {
    if
    :: !has_lease(c) -> goto rest
    :: has_lease(c) && trouble -> trouble--; goto rest
    :: has_lease(c) && is_wrong_bucket && !WITHOUT_MARKER -> is_wrong_bucket = false; block()
    :: has_lease(c) -> is_wrong_bucket = is_wrong_bucket && WITHOUT_MARKER
    fi
}
inline require_project_gone() {
    with_lease(skip); when(!is_current(deletion(c)) && !WITHOUT_OWN_LIFE, keep_unsent(); end_turn(ENDED))
}
#define shows(f) (seen[f] && (f != OWN || seen[OWN] == version[c]))
#define may_take(f) (shows(f) && item(c, f) != ROW_ONLY && (f == OWN || is_owned))
#define missed(f) (is_unconfirmed(c, f) && !seen[f])

proctype Worker(byte me) {
    byte c, f, seen[2];
    bool is_owned;
end:
    atomic {
        if                      /* Two idle workers are alike: the first takes it. */
        :: (me == 1 || late[1]) && is_due(FIRST) -> c = FIRST
        :: (me == 1 || late[1]) && is_due(FOLLOW_UP) -> c = FOLLOW_UP
        :: (me == 1 || late[1]) && is_due(SECOND) -> c = SECOND
        fi;
        status[c] = RUNNING; lease[c] = me; marked[c] = false;
        require_project_gone();
        when(cancelled[deletion(c)], keep_unsent(); step[c] = VERIFY);
        if
        :: step[c] == FIGURES && (there[OWN] || there[SHARED]) -> step[c] = PLAN; end_turn(PENDING)
        :: step[c] == FIGURES && c == FIRST && there[OWN] -> step[c] = PLAN; end_turn(BLOCKED)
        :: step[c] == FIGURES && !there[OWN] && !there[SHARED] -> close()
        :: step[c] == PLAN
        :: step[c] == DELETE -> marked[c] = true; goto delete
        :: step[c] == VERIFY -> goto verify
        fi
    }
    atomic {
        list_files(); check_marker();
        step[c] = DELETE; approved[c] = false; marked[c] = true; version[c] = there[OWN];
        item(c, OWN) = (seen[OWN] -> TO_DELETE : (there[OWN] -> ROW_ONLY : 0));
        item(c, SHARED) = (seen[SHARED] -> TO_DELETE : 0)
    }
delete:
    atomic { seen[OWN] = 0; seen[SHARED] = 0; list_files() }
    atomic { check_marker(); require_project_gone(); is_owned = neighbour == DEAD || WITHOUT_NEIGHBOUR;
        if :: skip :: trouble -> trouble--; late[me] = true fi }
    atomic {                    /* The gate: the recheck is recorded, and what may go is CALLED. */
        when(!has_lease(c) && !WITHOUT_LEASE, goto rest);
        for (f : OWN .. SHARED) {
            if
            :: !is_unsent(c, f) && item(c, f) != CALLED -> seen[f] = 0
            :: (is_unsent(c, f) || item(c, f) == CALLED) && may_take(f) -> seen[f] = 1
            :: else -> item(c, f) = (seen[f] -> KEPT : NOT_LISTED); seen[f] = 0
            fi
        }
        when(!seen[OWN] && !seen[SHARED], step[c] = VERIFY; marked[c] = false; goto verify);
        when(!may_send(c, deletion(c)), end_turn(PENDING));
        assert(hold[deletion(c)] == OVER);      /* nothing is sent while it is held */
        assert(!paused);                        /* nothing is sent while it is paused */
        assert(!cancelled[deletion(c)]);        /* nothing is sent once it is cancelled */
        first_request[c] = true; kept_for = 0; snapshot[deletion(c)] = false;
        for_each_file(seen[f], item(c, f) = CALLED);
        flying[me] = seen[OWN] + 2 * seen[SHARED];
        if
        :: goto sent
        :: trouble -> trouble--; late[me] = true; flying[me] = 0
        fi
    }
    atomic {                    /* It slept before it sent them. */
        when(!WITHOUT_DEADLINE, goto rest);
        flying[me] = seen[OWN] + 2 * seen[SHARED]
    }
sent:
    atomic {
        if
        :: arrive_all(flying[me])
        :: trouble -> trouble--; stray = flying[me]; flying[me] = 0
        fi;
        with_lease(step[c] = VERIFY);
        marked[c] = false;
        for_each_file(seen[f] && !stray, item(c, f) = ANSWERED)
    }
verify:
    atomic {
        seen[OWN] = 0; seen[SHARED] = 0; list_files();
        when(WITHOUT_SECOND_CHECK || !missed(OWN) && !missed(SHARED), goto settle)
    }
    atomic { check_marker(); list_files() }
settle:
    atomic {
        check_marker();
        for_each_file(is_unsettled(c, f), item(c, f) = (!shows(f) -> GONE : (cancelled[deletion(c)] -> KEPT : TO_DELETE)));
        assert(item(c, OWN) != GONE || there[OWN] != version[c]);  /* nothing is called gone that is there */
        assert(item(c, SHARED) != GONE || !there[SHARED]);         /* nothing is called gone that is there */
        when(cancelled[deletion(c)], end_turn(ENDED));
        when(is_unsent(c, OWN) || is_unsent(c, SHARED), step[c] = DELETE; end_turn(PENDING));
        close()
    }
rest:
    atomic {
        when(lease[c] == me, lease[c] = 0; marked[c] = false);
        when(status[c] == ENDED, forget(c));
        late[me] = false; c = 0; f = 0; seen[OWN] = 0; seen[SHARED] = 0; is_owned = false;
        goto end
    }
}
/* The cleanup in the other bucket: its gate, and what it sends. */
active proctype OtherBucket() {
end:
    d_step { status[ELSEWHERE] == PENDING && (!is_current(0) || hold[0] == OVER && !paused) ->
        when(is_current(0), first_request[ELSEWHERE] = true; kept_for = 0;
            snapshot[0] = WITHOUT_BOTH_BUCKETS; arrive(OTHER, false));
        status[ELSEWHERE] = ENDED }
}

/* The neighbour was deleted, and is held. Its own cleanup asks in the same way whether it may take SHARED. */
#define lives_for_others (row || kept_for == UNDO && !WITHOUT_KEPT_FOR_UNDO \
    || kept_for == GIVEN_UP && !WITHOUT_KEPT_FOR_CANCELLED)
active proctype Neighbour() {
end:
    do
    :: d_step { neighbour == HELD -> neighbour = (lives_for_others -> DEAD : TAKING);
        assert(kept_for != GIVEN_UP || neighbour == DEAD) } /* no file of a cancelled project goes */
    :: d_step { neighbour == TAKING -> neighbour = DEAD; arrive(SHARED, true) }
    od
}
/* What people do. Each locks all cleanups of the deletion. */
inline end_cleanup(c) {
    status[c] = ENDED;
    when(c != ELSEWHERE && !lease[c], forget(c)); when(c != ELSEWHERE, lease[c] = 0; marked[c] = false)
}
#define for_each_cleanup(condition) for (c : FIRST .. ELSEWHERE) { when(deletion(c) == current && (condition), \
    end_cleanup(c)) } c = 0
inline undo() {
    assert(deletions == 2 || !first_request[FIRST] && !first_request[FOLLOW_UP]);  /* nothing is restored and erased */
    assert(deletions == 2 -> !first_request[SECOND] : !first_request[ELSEWHERE]);  /* nothing is restored and erased */
    row = true; kept_for = 0; snapshot[current] = false; is_undoing = false;
    for_each_cleanup(status[c] != 0)
}
inline cancel() {
    cancelled[current] = true; kept_for = GIVEN_UP; snapshot[current] = false;
    for_each_cleanup(is_open(c) && !first_request[c]);
    for (c : FIRST .. SECOND) { when(status[c] == BLOCKED && deletion(c) == current, status[c] = PENDING) } c = 0
}
/* An idle cleanup of a deletion that does not count any more: all that a worker can do is end it. */
inline create() {
    row = true; life = 2; kept_for = 0;
    for_each_cleanup(!WITHOUT_OWN_LIFE && is_open(c) && (c == ELSEWHERE || !lease[c]))
}
#define is_sent(c, f) (item(c, f) == CALLED || item(c, f) == ANSWERED)
active proctype People() {
    byte c;
    bool is_undoing;
end:
    do
    :: d_step { row && deletions < 2 && (life == 1 || there[OWN] == 2) ->
        row = false; kept_for = UNDO; is_undoing = false;
        hold[deletions] = HELD; snapshot[deletions] = true;
        status[2 * deletions] = PENDING; step[2 * deletions] = FIGURES;
        when(deletions == 0 && there[OTHER], status[ELSEWHERE] = PENDING);
        when(deletions == 1, hold[0] = OVER; snapshot[0] = false; /* of no use any more */
            first_request[FIRST] = false; first_request[FOLLOW_UP] = false; first_request[ELSEWHERE] = false);
        deletions++ }
    :: d_step { !row && life == 1 -> create() }
    :: d_step { row && life == 2 && there[OWN] != 2 && !is_locked && !is_unanswered -> there[OWN] = 2 }
    :: d_step { !row && snapshot[current] && no_request_yet && !WITHOUT_FIRST_REQUEST -> undo() }
    :: d_step { WITHOUT_FIRST_REQUEST && !row && snapshot[current] && !is_undoing && !is_sent(FIRST, OWN) ->
        is_undoing = true }
    :: d_step { WITHOUT_FIRST_REQUEST && !row && is_undoing && is_any_open -> undo() }
    :: d_step { !row && snapshot[current] && hold[current] != OVER && !paused ->
        hold[current] = OVER; kept_for = 0; snapshot[current] = WITHOUT_ERASE_FIRST }
    :: d_step { !row && !cancelled[current] && is_any_open -> cancel() }
    :: d_step { status[FIRST] == BLOCKED -> status[FIRST] = PENDING; approved[FIRST] = true }
    :: d_step { trouble && deletions && !paused -> paused = true; trouble-- }
    :: d_step { paused -> paused = false }
    od
}
/* Time passes; requests arrive late or never; the sweep. */
active proctype World() {
end:
    do
    :: d_step { deletions && hold[current] != OVER -> hold[current] = OVER }
    :: d_step { trouble && deletions && hold[current] == HELD -> trouble--; hold[current] = AHEAD }
    :: d_step { stray -> arrive_all(stray) }
    :: d_step { stray -> stray = 0 }
    :: d_step { !row && kept_for == UNDO && hold[current] == OVER && !is_any_open ->
        kept_for = 0; snapshot[current] = WITHOUT_SWEEP }
    od
}
/* Where nothing can happen any more, each cleanup has ended or waits for a person. */
#define has_ended(c) (!is_open(c) || status[c] == BLOCKED || paused)
active proctype Judge() {
end:
    timeout ->
    assert(has_ended(FIRST) && has_ended(FOLLOW_UP) && has_ended(SECOND) && has_ended(ELSEWHERE)) /* each deletion ends */
}

init {
    atomic {
        if :: there[OWN] = 0; there[OTHER] = 0 :: skip fi;
        run Worker(1); run Worker(2)
    }
}
