# bash completion for stratisd

_stratisd() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    case $before in
        --files | --run-dir)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            ;;
        --log-level)
            mapfile -t COMPREPLY < <(compgen -W "trace debug info warn error" -- "$word")
            ;;
        --shards | --cpus | --bus-message-max | --grow-step | --low-water)
            # A number or a list: nothing to suggest.
            ;;
        *)
            mapfile -t COMPREPLY < <(
                compgen -W "--sim --files --run-dir --log-level --bus-message-max --grow-step --low-water \
                    --shards --cpus --help --version" -- "$word"
            )
            ;;
    esac
}

complete -F _stratisd stratisd
