/*
 * The handover, from the freeze to the moment in which one copy runs and nothing else is left.
 *
 * The two tables of wire/session.py are the two machines `serve` and `worker`; test_model.py compares each row from the
 * freeze on. Beside them stand their custodians, which outlive them, and a network that loses both connections as
 * often as it likes until `breaks` are used up. At each host one process may die: lm-serve or its custodian, the worker
 * or its custodian. Whoever lives starts a custodian anew, and whoever is left without its command does its work. With
 * PAIRS both may die at once; then somebody types lm-serve --reattach, whose custodian does the same.
 *
 * What is shared on a host (the source's decision, what the husk's custodian is told) is memory that outlives both
 * processes there. What travels is a message: it arrives, or is lost with its connection, and says nothing by that.
 */
#ifndef BREAKS
#define BREAKS 2
#endif
/* 1: both processes of a host may die at once. */
#ifndef PAIRS
#define PAIRS 0
#endif

mtype = { UNDECIDED, COMMIT, NO };                          /* the decision, and the words that tell it */
mtype = { FINAL, READY_SAID, ASK, RESUMED_SAID, DROPPED };  /* other messages */
mtype = { FROZEN, DESCRIBED, ARMED, READY, PARKED, REFUSED, IN_DOUBT, COMMITTED, RESUMED, ABORTED };

/* The source's host. */
mtype decision = UNDECIDED;
mtype source_state = FROZEN;
bool source_runs = false, serve_lives = true, source_custodian_lives = true;
bool source_parked = false;   /* the threads wait for the word */
bool source_knows = false;    /* that the destination carried the decision out */
byte source_deaths = 0;

/* The destination's host. */
mtype husk_state = DESCRIBED;
bool destination_runs = false, worker_lives = true, husk_custodian_lives = true;
bool husk_there = true, signalled = false;
byte destination_deaths = 0;

/* The network. A connection of two directions; `up` false: what was on its way is lost. */
bool control_up = true, decision_up = true;
byte breaks = BREAKS;
chan to_destination = [2] of { mtype };   /* CONTROL */
chan to_source = [2] of { mtype };
chan word_to_destination = [1] of { mtype };  /* DECISION */
chan word_to_source = [1] of { mtype };

inline at_most_one() { assert(!(source_runs && destination_runs)); }

/* Rows of the tables: from, event, to. */
inline source_happens(from, event, to) { assert(source_state == from); source_state = to; }
inline husk_happens(from, event, to) { assert(husk_state == from); husk_state = to; }
#define EVENT_FINAL 0
#define EVENT_READY 0
#define EVENT_ARMED 0
#define EVENT_PARKED 0
#define EVENT_COMMIT 0
#define EVENT_THAWED 0
#define EVENT_RESUMED 0
#define EVENT_FAILED 0
#define EVENT_ABORTED 0
#define EVENT_CANCELLED 0
#define EVENT_LOST 0

/* The compare-and-swap: `decision` is what is decided afterwards, by whoever came first. */
inline decide(word) { if :: decision == UNDECIDED -> decision = word :: else fi }

/* The word is written to the threads that wait, or they go home: nobody runs before NO is decided. */
inline thaw() {
    assert(decision == NO);
    source_parked = false;
    source_runs = true;
    at_most_one()
}

inline resume() {
    destination_runs = true;
    husk_there = false;
    at_most_one()
}

/* lm-serve: it carries out what is decided, whoever decided it. */
active proctype serve() {
    /* Nothing of the final description has left. */
    if
    :: atomic { serve_lives && control_up -> to_destination!FINAL; source_happens(FROZEN, EVENT_FINAL, DESCRIBED) }
    :: atomic { serve_lives -> source_happens(FROZEN, EVENT_FAILED, REFUSED); goto refused }
    :: atomic { serve_lives -> source_happens(FROZEN, EVENT_ABORTED, REFUSED); goto refused }
    :: atomic { serve_lives -> source_happens(FROZEN, EVENT_CANCELLED, REFUSED); goto refused }
    :: atomic { serve_lives && !control_up -> source_happens(FROZEN, EVENT_LOST, REFUSED); goto refused }
    :: !serve_lives -> goto dead
    fi;
    if
    :: atomic { serve_lives && control_up && to_source?[READY_SAID] ->
        to_source?READY_SAID; source_happens(DESCRIBED, EVENT_READY, READY) }
    :: atomic { serve_lives -> source_happens(DESCRIBED, EVENT_FAILED, REFUSED); goto refused }
    :: atomic { serve_lives -> source_happens(DESCRIBED, EVENT_ABORTED, REFUSED); goto refused }
    :: atomic { serve_lives -> source_happens(DESCRIBED, EVENT_CANCELLED, REFUSED); goto refused }
    :: atomic { serve_lives && !control_up -> source_happens(DESCRIBED, EVENT_LOST, REFUSED); goto refused }
    :: !serve_lives -> goto dead
    fi;
    if
    :: atomic { serve_lives -> source_parked = true; source_happens(READY, EVENT_PARKED, PARKED) }
    :: atomic { serve_lives -> source_happens(READY, EVENT_FAILED, REFUSED); goto refused }
    :: atomic { serve_lives -> source_happens(READY, EVENT_ABORTED, REFUSED); goto refused }
    :: atomic { serve_lives -> source_happens(READY, EVENT_CANCELLED, REFUSED); goto refused }
    :: atomic { serve_lives && !control_up -> source_happens(READY, EVENT_LOST, REFUSED); goto refused }
    :: !serve_lives -> goto dead
    fi;
    if
    :: atomic { serve_lives -> decide(COMMIT);
        if
        :: decision == COMMIT -> source_happens(PARKED, EVENT_COMMIT, COMMITTED); goto committed
        :: else -> source_happens(PARKED, EVENT_FAILED, REFUSED); goto refused
        fi }
    :: atomic { serve_lives -> source_happens(PARKED, EVENT_FAILED, REFUSED); goto refused }
    :: atomic { serve_lives -> source_happens(PARKED, EVENT_ABORTED, REFUSED); goto refused }
    :: atomic { serve_lives -> source_happens(PARKED, EVENT_CANCELLED, REFUSED); goto refused }
    :: atomic { serve_lives && !control_up -> source_happens(PARKED, EVENT_LOST, REFUSED); goto refused }
    :: !serve_lives -> goto dead
    fi;
refused:
    /* Decided first, then thawed. */
    if
    :: atomic { serve_lives -> decide(NO); assert(decision == NO) }
    :: !serve_lives -> goto dead
    fi;
    if
    :: atomic { serve_lives -> thaw(); source_happens(REFUSED, EVENT_THAWED, ABORTED) }
    :: !serve_lives -> goto dead
    fi;
committed:
dead:
    skip
}

/* Whoever has to act on the decision here has done so, or still lives to do it. */
#define carried_out (serve_lives || decision == COMMIT || source_runs)

/* The source's custodian: when lm-serve is dead it decides, and carries out; it alone answers on DECISION. */
active proctype source_custodian() {
    mtype word;
end:
    do
    :: atomic { source_custodian_lives && !serve_lives && decision == UNDECIDED -> decide(NO) }
    :: atomic { source_custodian_lives && !serve_lives && decision == NO && !source_runs -> thaw() }
    /* A hanging lm-serve: it is ended, far beyond the time that a freeze may take. */
    :: atomic { source_custodian_lives && decision == UNDECIDED -> decide(NO); serve_lives = false }
    /* What is decided is told, unasked too, and again on each new connection. */
    :: atomic { source_custodian_lives && decision_up && decision != UNDECIDED && !source_knows &&
                empty(word_to_destination) && carried_out -> word_to_destination!decision }
    :: atomic { source_custodian_lives && decision_up && nempty(word_to_source) && carried_out ->
        word_to_source?word;
        if
        :: word == ASK ->
            if :: empty(word_to_destination) -> word_to_destination!decision :: nempty(word_to_destination) fi
        :: word == RESUMED_SAID -> assert(decision == COMMIT); source_knows = true
        :: word == DROPPED -> assert(decision == NO); source_knows = true
        :: else -> skip
        fi }
    :: source_knows && (decision == COMMIT || source_runs) -> break
    od
}

/* lm-restore's worker. */
active proctype worker() {
    if
    :: atomic { worker_lives && control_up && to_destination?[FINAL] -> to_destination?FINAL;
        husk_happens(DESCRIBED, EVENT_ARMED, ARMED) }
    :: atomic { worker_lives -> husk_happens(DESCRIBED, EVENT_FAILED, ABORTED); goto aborted }
    :: atomic { worker_lives -> husk_happens(DESCRIBED, EVENT_ABORTED, ABORTED); goto aborted }
    :: atomic { worker_lives -> husk_happens(DESCRIBED, EVENT_CANCELLED, ABORTED); goto aborted }
    :: atomic { worker_lives && !control_up -> husk_happens(DESCRIBED, EVENT_LOST, ABORTED); goto aborted }
    :: atomic { !worker_lives -> husk_there = false; goto dead }
    fi;
    if
    /* From the first byte of READY on nobody here decides. */
    :: atomic { worker_lives && control_up -> husk_happens(ARMED, EVENT_READY, READY); to_source!READY_SAID }
    :: atomic { worker_lives -> husk_happens(ARMED, EVENT_FAILED, ABORTED); goto aborted }
    :: atomic { worker_lives -> husk_happens(ARMED, EVENT_ABORTED, ABORTED); goto aborted }
    :: atomic { worker_lives -> husk_happens(ARMED, EVENT_CANCELLED, ABORTED); goto aborted }
    :: atomic { worker_lives && !control_up -> husk_happens(ARMED, EVENT_LOST, ABORTED); goto aborted }
    :: !worker_lives -> goto dead
    fi;
waiting:
    do
    :: atomic { worker_lives && decision_up && word_to_destination?[COMMIT] -> word_to_destination?COMMIT;
        if
        :: husk_state == READY -> husk_happens(READY, EVENT_COMMIT, COMMITTED)
        :: else -> husk_happens(IN_DOUBT, EVENT_COMMIT, COMMITTED)
        fi; goto committed }
    :: atomic { worker_lives && decision_up && word_to_destination?[NO] -> word_to_destination?NO;
        if
        :: husk_state == READY -> husk_happens(READY, EVENT_ABORTED, ABORTED)
        :: else -> husk_happens(IN_DOUBT, EVENT_ABORTED, ABORTED)
        fi; goto aborted }
    :: atomic { worker_lives && decision_up && word_to_destination?[UNDECIDED] -> word_to_destination?UNDECIDED }
    :: atomic { worker_lives && husk_state == READY && !decision_up -> husk_happens(READY, EVENT_LOST, IN_DOUBT) }
    :: atomic { worker_lives && husk_state == READY -> husk_happens(READY, EVENT_FAILED, IN_DOUBT) }
    :: atomic { worker_lives && husk_state == READY && !signalled -> signalled = true;
        husk_happens(READY, EVENT_CANCELLED, READY) }
    :: atomic { worker_lives && husk_state == IN_DOUBT && decision_up && empty(word_to_source) &&
                empty(word_to_destination) -> word_to_source!ASK }
    :: !worker_lives -> goto dead
    od;
committed:
    if
    :: atomic { worker_lives -> resume(); husk_happens(COMMITTED, EVENT_RESUMED, RESUMED) }
    :: !worker_lives -> goto dead
    fi;
    goto dead;
aborted:
    if
    :: atomic { worker_lives -> husk_there = false }
    :: !worker_lives -> goto dead
    fi;
dead:
    skip
}

/* The husk's custodian: it has the husk from ARMED on, and asks when the worker is dead. Before that, the husk dies
 * with the worker. */
active proctype husk_custodian() {
    mtype word;
end:
    do
    :: atomic { husk_custodian_lives && !worker_lives && (husk_state == ARMED || husk_state == ABORTED) &&
                husk_there -> husk_there = false }
    :: atomic { husk_custodian_lives && !worker_lives && husk_state == COMMITTED && !destination_runs -> resume() }
    :: atomic { husk_custodian_lives && !worker_lives && husk_there && !destination_runs &&
                (husk_state == READY || husk_state == IN_DOUBT) && decision_up && nempty(word_to_destination) ->
        word_to_destination?word;
        if
        :: word == COMMIT -> resume()
        :: word == NO -> husk_there = false
        :: else -> skip
        fi }
    :: atomic { husk_custodian_lives && !worker_lives && husk_there && !destination_runs &&
                (husk_state == READY || husk_state == IN_DOUBT) && decision_up && empty(word_to_source) &&
                empty(word_to_destination) -> word_to_source!ASK }
    /* What was carried out is said, again on each new connection, until the source has heard it. */
    :: atomic { husk_custodian_lives && decision_up && destination_runs && !source_knows && empty(word_to_source) ->
        word_to_source!RESUMED_SAID }
    :: atomic { husk_custodian_lives && decision_up && !husk_there && !destination_runs && decision == NO &&
                !source_knows && empty(word_to_source) -> word_to_source!DROPPED }
    /* What comes twice is passed over. */
    :: atomic { husk_custodian_lives && decision_up && (destination_runs || !husk_there) &&
                nempty(word_to_destination) -> word_to_destination?word }
    :: source_knows -> break
    od
}

/* One death at each host; whoever lives starts its custodian anew. */
active proctype death() {
end:
    do
    :: atomic { source_deaths == 0 && serve_lives -> source_deaths++; serve_lives = false }
    :: atomic { source_deaths == 0 && serve_lives && source_custodian_lives ->
        source_deaths++; source_custodian_lives = false }
    :: atomic { PAIRS && source_deaths == 0 && serve_lives && source_custodian_lives ->
        source_deaths++; serve_lives = false; source_custodian_lives = false }
    :: atomic { serve_lives && !source_custodian_lives -> source_custodian_lives = true }
    :: atomic { PAIRS && !serve_lives && !source_custodian_lives -> source_custodian_lives = true }
    :: atomic { destination_deaths == 0 && worker_lives -> destination_deaths++; worker_lives = false }
    :: atomic { destination_deaths == 0 && worker_lives && husk_custodian_lives ->
        destination_deaths++; husk_custodian_lives = false }
    :: atomic { PAIRS && destination_deaths == 0 && worker_lives && husk_custodian_lives ->
        destination_deaths++; worker_lives = false; husk_custodian_lives = false }
    :: atomic { worker_lives && !husk_custodian_lives -> husk_custodian_lives = true }
    :: source_knows -> break
    od
}

/* CONTROL ends once and for all; DECISION is dialled anew by whoever dialled before. */
active proctype network() {
end:
    do
    :: atomic { breaks > 0 && control_up -> breaks--; control_up = false;
        do :: nempty(to_destination) -> to_destination?_ :: empty(to_destination) -> break od;
        do :: nempty(to_source) -> to_source?_ :: empty(to_source) -> break od }
    :: atomic { breaks > 0 && decision_up -> breaks--; decision_up = false;
        do :: nempty(word_to_destination) -> word_to_destination?_ :: empty(word_to_destination) -> break od;
        do :: nempty(word_to_source) -> word_to_source?_ :: empty(word_to_source) -> break od }
    :: atomic { !decision_up -> decision_up = true }
    od
}

#define one_runs (source_runs || destination_runs)
#define all_is_said (one_runs && !(source_runs && husk_there))

ltl one_copy_runs { <> one_runs }
ltl nothing_waits { <> [] all_is_said }
