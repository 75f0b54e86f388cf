# Keeps one PostgreSQL server for one order-service process:
#   sh -c <this> postgres keep|remove FOLDER INITDB SERVER [ARGUMENT...]
#
# Standard input is the lifeline. The kernel closes it when that process ends in any way (also by SIGKILL). Then the
# server stops, and with "remove" the folder is deleted. Until then every line is a command:
#   start RUN PORT   creates the database if it is missing, and starts the server
#   crash            crashes the server
# The file "exit.RUN" means that this run of the server, or the creation of its database, has ended.

end=$1 folder=$2 initdb=$3
shift 3
run=0
# Only the end of the lifeline stops this shell.
trap '' HUP INT TERM
# Standard output is the lock of a kept folder: this shell and the server hold it until they have ended.
cd "$folder" && exec 3>&1 >>log 2>&1 || exit 1
# Kept data must survive a power cut.
[ "$end" = keep ] && sync= || sync=--no-sync

make_database() {
    # Renames the complete database, because an incomplete one looks complete.
    rm -rf data.new
    "$initdb" -D data.new -U postgres -A trust -E UTF8 --locale=C $sync </dev/null && mv data.new data
}

serve() {
    "$@" </dev/null &
    echo $! >pid
    wait $!
    echo $? >"exit.$run"
}

start() {
    rm -f pid
    if [ ! -e data/PG_VERSION ] && ! make_database; then
        rm -rf data.new
        echo failed >"exit.$run"
        return
    fi
    serve "$@" &
    # A stop needs the server's process id.
    until [ -s pid ]; do sleep 0.01; done
}

# Sends each signal only if the one before has not ended the server within five seconds.
halt() {
    for signal in "$@"; do
        [ -s pid ] && [ ! -e "exit.$run" ] || return
        kill -s "$signal" "$(cat pid)"
        tries=0
        while [ ! -e "exit.$run" ] && [ $tries -lt 250 ]; do
            sleep 0.02
            tries=$((tries + 1))
        done
    done
}

while read -r command next port; do
    case $command in
    start) run=$next && start "$@" -p "$port" ;;
    crash) halt QUIT KILL ;;
    esac
done
halt INT QUIT KILL
[ "$end" = keep ] && exit
cd / || exit 1
# After a KILL, the server's child processes may still write for a moment.
rm -rf "$folder" || { sleep 1 && rm -rf "$folder"; }
