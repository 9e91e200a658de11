-- Plays prepared requests, each once: a signed one can't be sent twice. The file has
-- them one after another, each behind its length in digits and a line feed.
-- usage: wrk -t1 -c32 -d5s -s wrk.lua URL -- FILE

local file

function init(args)
    file = assert(io.open(args[1], "rb"))
end

function request()
    local length = file:read("*n", "*l")
    if length == nil then
        -- Nothing is left. The path does not exist, so that it counts as failed.
        return wrk.format("GET", "/too-few-requests-were-prepared")
    end
    return file:read(length)
end

function done(summary)
    local errors = summary.errors
    local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
    io.write(string.format("\n{\"requests\": %d, \"seconds\": %.6f, \"failed\": %d}\n",
        summary.requests, summary.duration / 1e6, failed))
end
