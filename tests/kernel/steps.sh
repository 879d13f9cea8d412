# What a case may do in the guest. `cell NAME SEED MEMBER...` sets the stage, the case's own lines follow, `cell_end` clears it.
# Facts are printed as "= key value", one a line; a case ends at the first thing that goes wrong, with the fact `error`.

MD=/sys/block/md0/md
TRIES=1200 # times 50 ms: how long anything is waited for

say() { echo "= $*"; }
die() {
    say error "$*"
    cat /proc/mdstat
    dmesg | tail -n 15
    exit 1
}
must() { out=$("$@" 2>&1) || die "$*: $(echo $out)"; }
await() { # a shell condition
    n=0
    until eval "$1"; do
        n=$((n + 1))
        [ $n -lt $TRIES ] || die "waited in vain for $1"
        usleep 50000
    done
}
is() { read -r word _ <"$MD/$1" 2>/dev/null && [ "$word" = "$2" ]; }

# How the array stands: what it lacks, from where it is to be resynced, which member is where.
look() {
    for name in array_state degraded resync_start sync_action; do
        word=none
        [ -e $MD/$name ] && read -r word _ <$MD/$name
        say $name $word
    done
    number=0
    for member in $MEMBERS; do
        folder=$MD/dev-${member#/dev/}
        if [ -d $folder ]; then
            read -r slot <$folder/slot
            read -r state <$folder/state
            read -r recovered <$folder/recovery_start
            say member.$number $slot $state $recovered
        else
            say member.$number out
        fi
        number=$((number + 1))
    done
}
# In auto-read-only: nothing is written, and no recovery or resync begins before `go`.
assemble() {
    dmesg -c >/dev/null
    must mdadm --assemble --run /dev/md0 "$@"
    look
}
refused() { # mdadm or the kernel does not start the array out of these members
    if out=$(mdadm --assemble "$@" 2>&1); then
        look
        die "assembled: $(echo $out)"
    fi
    say refused $(echo $out)
    mdadm --stop /dev/md0 >/dev/null 2>&1
}
create() { must mdadm --create /dev/md0 --run "$@"; }
go() { [ "$(cat $MD/array_state)" != read-auto ] || must mdadm --readwrite /dev/md0; }
content() {
    echo 3 >/proc/sys/vm/drop_caches
    out=$(sha256sum </dev/md0) || die "the array cannot be read"
    say sha256 ${out%% *}
}
put() { # skip, seek, count: so many KiB of the seed, from there to there
    must dd if=$SEED of=/dev/md0 bs=1k skip=$1 seek=$2 count=$3 conv=notrunc,fsync
}
fill() { # the whole array, with the beginning of the seed
    must dd if=$SEED of=/dev/md0 bs=1k count=$(($(blockdev --getsize64 /dev/md0) / 1024)) conv=notrunc,fsync
}
check() {
    [ -e $MD/sync_action ] || return 0 # levels without redundancy
    await "is sync_action idle"
    echo check >$MD/sync_action || die "no check"
    await "is sync_action idle"
    say mismatch_cnt $(cat $MD/mismatch_cnt)
}
whole() { # until every slot is filled and in sync
    await "is degraded 0 && is sync_action idle && is resync_start none"
}
# Lets the next recovery or resync go so far (in sectors) and no further; `held` waits until it stands there.
hold() {
    HOLD=$1
    echo $1 >$MD/sync_max || die "no sync_max $1"
}
held() { await "is sync_completed $HOLD"; }
resumed() { say resumed $(dmesg | grep -E "resuming (recovery|resync)|from checkpoint" | tail -n 1); }
stop() {
    sync
    must mdadm --stop /dev/md0
}

cell() {
    echo "@@ cell $1"
    SEED=$2
    shift 2
    MEMBERS="$*"
}
cell_end() {
    [ ! -e $MD/array_state ] || is array_state clear || mdadm --stop /dev/md0 >/dev/null 2>&1 || { sleep 1; mdadm --stop /dev/md0; }
    echo "@@ end"
}
