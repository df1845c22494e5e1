-- What nodes share beside messages: documents, places and counts. Names of documents are fields; those of places and
-- counters are 16 raw bytes (hashes of what clients chose).

local PLACES_S = 3600 -- what a dead member took is forgotten after this if nobody reaps it; a recount renews it
local SLICES = 10 -- of the window of a counter

-- A counter's keys live a little longer than they mean anything; whole seconds.
local function keep_for(key, seconds)
  redis.call('EXPIRE', key, math.ceil(seconds) + 1)
end

-- A version grows with every change, and never comes again where the store lost its last writes.
local function next_version(p, kind)
  local version = math.max(tonumber(redis.call('GET', p .. 'docver') or 0) + 1, now_ms())
  redis.call('SET', p .. 'docver', string.format('%.0f', version))
  redis.call('HSET', p .. 'docvers', kind, string.format('%.0f', version))
  return version
end

-- Sets ('=' and the value) or removes ('') documents of a kind. args: kind, then name, value ... Returns the new version.
local function change_documents(keys, args)
  local p, gone, set = keys[1], {}, {}
  for i = 2, #args, 2 do
    if args[i + 1] == '' then
      gone[#gone + 1] = args[i]
    else
      set[#set + 1] = args[i]
      set[#set + 1] = string.sub(args[i + 1], 2)
    end
  end
  in_chunks('HDEL', p .. 'doc:' .. args[1], gone)
  in_chunks('HSET', p .. 'doc:' .. args[1], set)
  return next_version(p, args[1])
end

-- Sets a document unless there is one of this name. args: kind, name, value. Returns 1 if it was set, else 0.
local function create_document(keys, args)
  local p = keys[1]
  if redis.call('HEXISTS', p .. 'doc:' .. args[1], args[2]) == 1 then
    return 0
  end
  redis.call('HSET', p .. 'doc:' .. args[1], args[2], args[3])
  next_version(p, args[1])
  return 1
end

-- Removes documents of a kind, in a full store too: those that still are as told ('=' and the value), and whatever ('')
-- they are. args: kind, then name, value ... Returns the version.
local function remove_documents(keys, args)
  local p, key, gone = keys[1], keys[1] .. 'doc:' .. args[1], {}
  for i = 2, #args, 2 do
    local found = redis.call('HGET', key, args[i])
    if found and (args[i + 1] == '' or args[i + 1] == '=' .. found) then
      gone[#gone + 1] = args[i]
    end
  end
  if in_chunks('HDEL', key, gone) > 0 then
    return next_version(p, args[1])
  end
  return tonumber(redis.call('GET', p .. 'docver') or 0)
end

-- Counts an event. args: name, window ms. Returns how many there were in the window, this one included; events leave it
-- a slice at a time.
local function count(keys, args)
  local key, width = keys[1] .. 'cn:' .. args[1], math.max(1, tonumber(args[2]) / SLICES)
  local slice = math.floor(now_ms() / width)
  local found, sum, old = redis.call('HGETALL', key), 1, {}
  for i = 1, #found, 2 do
    if tonumber(found[i]) > slice - SLICES then
      sum = sum + tonumber(found[i + 1])
    else
      old[#old + 1] = found[i]
    end
  end
  in_chunks('HDEL', key, old)
  redis.call('HINCRBY', key, string.format('%.0f', slice), 1)
  keep_for(key, tonumber(args[2]) / 1000)
  return sum
end

-- Takes up to so many tokens from a bucket that begins full. args: name, amount, rate per s, burst. Returns how many.
local function draw(keys, args)
  local key, rate, burst, now = keys[1] .. 'tb:' .. args[1], tonumber(args[3]), tonumber(args[4]), now_ms()
  local f = redis.call('HMGET', key, 'l', 'a')
  local level = burst
  if f[1] then
    level = math.min(burst, tonumber(f[1]) + math.max(0, now - tonumber(f[2])) * rate / 1000)
  end
  local given = math.min(tonumber(args[2]), math.floor(level))
  redis.call('HSET', key, 'l', string.format('%.3f', level - given), 'a', string.format('%.0f', now))
  keep_for(key, math.min(burst / rate, 86400))
  return given
end

-- The places that a member took: a hash of name -> count, in as many parts as there are values of the name's first byte
-- modulo PLACE_PARTS (see cluster/redis/registry.py).
local PLACE_PARTS = 64

local function places_of(p, member, name)
  return p .. 'pl:' .. member .. ':' .. string.byte(name) % PLACE_PARTS
end

-- Takes one place under each name, or none at all. What members took that are buried does not count.
-- args: member, then name, limit ... Returns the number of the first pair that is full, 0 for success.
local function occupy(keys, args)
  local p = keys[1]
  local members = redis.call('ZRANGE', p .. 'nodes', 0, -1)
  for i = 2, #args, 2 do
    local sum = 0
    for _, member in ipairs(members) do
      sum = sum + tonumber(redis.call('HGET', places_of(p, member, args[i]), args[i]) or 0)
    end
    if sum >= tonumber(args[i + 1]) then
      return i / 2
    end
  end
  for i = 2, #args, 2 do
    local key = places_of(p, args[1], args[i])
    redis.call('HINCRBY', key, args[i], 1)
    redis.call('EXPIRE', key, PLACES_S)
  end
  return 0
end

-- Gives places back. args: member, then names. Returns how many it had.
local function vacate(keys, args)
  local freed = 0
  for i = 2, #args do
    local key = places_of(keys[1], args[1], args[i])
    local taken = tonumber(redis.call('HGET', key, args[i]) or 0)
    if taken > 1 then
      redis.call('HINCRBY', key, args[i], -1)
    elseif taken == 1 then
      redis.call('HDEL', key, args[i])
    end
    freed = freed + math.min(taken, 1)
  end
  return freed
end

-- These are all the places that a member has of one part. args: member, part, then name, count ...
local function recount(keys, args)
  local key, fields = keys[1] .. 'pl:' .. args[1] .. ':' .. args[2], {}
  for i = 3, #args do
    fields[i - 2] = args[i]
  end
  redis.call('UNLINK', key)
  if #fields > 0 then
    in_chunks('HSET', key, fields)
    redis.call('EXPIRE', key, PLACES_S)
  end
  return #fields / 2
end

-- A dead member has no places. args: member. Returns how many keys it had.
local function unplace(keys, args)
  local found = {}
  for part = 0, PLACE_PARTS - 1 do
    found[part + 1] = keys[1] .. 'pl:' .. args[1] .. ':' .. part
  end
  return redis.call('UNLINK', unpack(found))
end

redis.register_function('rk1_change_documents', change_documents)
redis.register_function('rk1_create_document', create_document)
redis.register_function { function_name = 'rk1_remove_documents', callback = remove_documents, flags = { 'allow-oom' } }
redis.register_function('rk1_count', count)
redis.register_function('rk1_draw', draw)
redis.register_function { function_name = 'rk1_occupy', callback = occupy, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_vacate', callback = vacate, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_recount', callback = recount, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_unplace', callback = unplace, flags = { 'allow-oom' } }
