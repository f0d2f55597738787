-- Orthanc sends every radiograph on to Wetread, as soon as it is stored. Reports and captures, which Wetread sends
-- here, are neither CR nor DX: nothing goes round. A sending that failed stays in Orthanc's list of jobs, from where it
-- can be sent again; Wetread can also fetch what it missed (setting `pull_sources`).
function OnStoredInstance(instanceId, tags, metadata, origin)
  if tags["Modality"] == "CR" or tags["Modality"] == "DX" then
    SendToModality(instanceId, "wetread")
  end
end
